"""Losses of the task itself, student against labels."""
