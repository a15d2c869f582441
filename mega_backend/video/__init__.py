"""Clips: people followed over the frames, hypotheses chosen along time, motion smoothed. The camera must stand still."""
