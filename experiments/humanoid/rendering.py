"""Pictures of a simulation where there is no screen."""

import ctypes.util
import os
from typing import Any

import mujoco
import numpy as np

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


def context(width: int, height: int) -> Any:
    """An OpenGL context: of MUJOCO_GL, if that is set, else of EGL where its library is installed, else of OSMesa. A
    process cannot try one after the other.

    Raises:
        OSError: there is none.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    found = [name for name, library in LIBRARIES.items() if ctypes.util.find_library(library)]
    backend = asked if asked in LIBRARIES else (found or [""])[0]
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            raise ImportError("neither EGL nor OSMesa is installed (on Debian: libegl1 and libopengl0, or libosmesa6)")
        return GLContext(width, height)
    except (ImportError, AttributeError, RuntimeError) as error:
        other = " or ".join(name for name in LIBRARIES if name != backend)
        hint = f"; MUJOCO_GL={other} would try another" if backend else ""
        raise OSError(f"no offscreen OpenGL: {error}{hint}") from error


class Renderer:
    """Draws one model offscreen; to be used in the thread it was made in."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        self._gl = context(width, height)
        self._gl.make_current()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._model, self._size = model, (width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        # Shadows as fine as these models ask for are nearly all of the time where no GPU draws.
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera, self._options = mujoco.MjvCamera(), mujoco.MjvOption()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """What `camera` sees, (height, width, 3) uint8."""
        width, height = self._size
        self._gl.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, rectangle, self._context)
        return picture[::-1].copy()  # OpenGL begins below

    def close(self) -> None:
        """Free the context."""
        self._context.free()
        self._gl.free()
