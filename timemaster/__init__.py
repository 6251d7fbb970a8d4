"""Reinforcement-learning post-training of Qwen2.5-VL on temporal data."""

__version__ = "0.1.0"
