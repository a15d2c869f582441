"""The detector's 33 landmarks by number: which belong together, and how they go with other sets of joints."""

SHOULDERS, ELBOWS, WRISTS, HIPS, KNEES, ANKLES = (11, 12), (13, 14), (15, 16), (23, 24), (25, 26), (27, 28)
MAIN = (*SHOULDERS, *ELBOWS, *WRISTS, *HIPS, *KNEES, *ANKLES)
"""Landmark numbers of shoulders, elbows, wrists, hips, knees and ankles, left before right."""
MIRRORED = (0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9, *(i + 1 if i % 2 else i - 1 for i in range(11, 33)))
"""The landmark that each landmark becomes in a mirror."""
COCO17_LANDMARKS = (0, 2, 5, 7, 8, *MAIN)
"""The landmark for each of the 17 COCO joints."""
