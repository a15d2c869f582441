"""Bodies, poses, views and pictures to train on."""
