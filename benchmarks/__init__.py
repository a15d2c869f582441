"""Programs that print the figures: how long things take, how much they need, how far they hold."""
