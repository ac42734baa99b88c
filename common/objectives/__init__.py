"""The objectives: a module each with its options and `run`, which reads as the algorithm does, from top to bottom.

`buffer` trains the experts that TM needs.
"""
