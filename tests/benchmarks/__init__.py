"""Speed against the tools that people use today, measured by hand: `python -m tests.benchmarks TABLE [--json]`.

Everything in a table is measured in one run on one machine, each as the median over repeats, so that what counts is the
ratio. Peers are measured where they are installed (`pip install -e ".[bench]"`).
"""
