"""Continual vision (paper, section 4.1 and Figure 2): image classification on data that grows."""
