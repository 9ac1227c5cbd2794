"""Numerical solvers: procedures that hold a problem's solution and improve it, one iteration after the other."""
