"""Curves and tables of finished runs."""
