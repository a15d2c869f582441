"""The commands of `mega` on single pictures and results, and what all commands share: options, outputs, progress."""
