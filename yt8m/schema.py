"""Facts of the YouTube-8M dataset: names, sizes, quantiser.

Source: Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification
Benchmark", 2016, arXiv:1609.08675, and the dataset's releases of 2017 to 2019.
"""

NUM_CLASSES = 3862  # releases of 2018 and 2019; 4,716 in 2017, 4,800 in 2016
MOST_CLASSES = 1 << 14  # of any data whose labels are read and not looked at
MAX_FRAMES = 300  # one frame a second; a few records hold 301

FRAME_FEATURES = {"rgb": 1024, "audio": 128}  # bytes, one string a frame
VIDEO_FEATURES = {"mean_rgb": 1024, "mean_audio": 128}  # floats

# `id` in the releases of 2018 and 2019, `video_id` in 2017's and in AudioSet.
ID_KEYS = ("id", "video_id")
LABELS_KEY = "labels"  # absent in the test split

# Segments of the 2019 release: rated by people, one entry for each rated pair of a
# segment and a class, in context lists of equal length.
SEGMENT_FRAMES = 5
SEGMENT_LABELS_KEY = "segment_labels"  # int64, the class
SEGMENT_STARTS_KEY = "segment_start_times"  # int64, seconds: the first frame's number
SEGMENT_ENDS_KEY = "segment_end_times"  # int64, seconds
SEGMENT_SCORES_KEY = "segment_scores"  # float, 1 if the class is there, 0 if not
MAX_SEGMENTS_PER_CLASS = 100_000  # of a submission in 2019

# A byte q stands for q * DEQUANTIZE_SCALE + DEQUANTIZE_OFFSET, in [-1.992, 2.008].
# The offset is half a bin of 4 / 256 above -2, as in the dataset's own reader:
# models were trained on it, so it is kept to the bit.
QUANTIZE_MIN = -2.0
QUANTIZE_MAX = 2.0
DEQUANTIZE_SCALE = (QUANTIZE_MAX - QUANTIZE_MIN) / 255.0
DEQUANTIZE_OFFSET = (QUANTIZE_MAX - QUANTIZE_MIN) / 512.0 + QUANTIZE_MIN
