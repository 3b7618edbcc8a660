"""NPBG++: system, input views and sums over views."""
