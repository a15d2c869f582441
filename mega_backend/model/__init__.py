"""Models over mesh tokens: MEGA with its sampling and conditioning, VQ-HPS, image backbones."""
