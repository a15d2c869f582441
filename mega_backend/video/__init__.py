"""Clips: people followed over the frames, hypotheses chosen along time, smooth motion. The camera must stand still."""
