"""Largest sizes of the data and the settings of a training."""

MOST_UNITS = 16_384
"""Most units of a layer, and values of an embedding: a recurrent layer of this width has 4 GB of weights."""
MOST_LAYERS = 100
"""Most Bi-LSTM layers: deeper recurrent networks are not trained in practice."""
MOST_COUNTED = 2**53
"""Most epochs, steps, windows, cells or hours: the largest number that JSON keeps exactly."""
MOST_SITES = 100_000
"""Most sites of a synthetic panel, folds of a split, and neighbours: the US has about 1,000 monitors."""
MOST_MATCHED_SITES = 10_000
"""Most sites of a kNNDM split: the distances between all pairs of 10,000 need 3 GB."""
MOST_DAYS = 36_525
"""Most days of a table, a window or a gap: a century, beyond which a year is mistyped."""
MOST_SITE_DAYS = 10_000_000
"""Most sites times days of a synthetic panel: 1,000 sites and 27 years need 3 GB while they are made."""
MOST_KM = 1_000_000.0
"""Largest distance in km: 25 times around the Earth, so that no stored cell is beyond it."""
MOST_NAME = 200
"""Most characters of a group's column and value: they are part of labels and of file names."""

MOST_COLUMNS = 10_000
"""Most columns of a table that are read: a table of the published channels has 30."""
MOST_VALUES = 2_000_000_000
"""Most values of a table or a panel: 8 GB of 32-bit numbers."""
MOST_FILES = 10_000
"""Most Parquet files of a folder: one for each day gives 27 years."""
MOST_FILE_BYTES = 4 << 30
"""Most bytes of a file that is read at once, packed or unpacked: a sixth of a memory of 24 GB."""
MOST_UNPACKED_BYTES = 2 << 30
"""Most bytes of a zip's members together: EPA's largest daily file has 300 MB."""
MOST_MEMBERS = 10_000
"""Most members of a zip: those of EPA have one."""
MOST_RATIO = 200
"""Largest ratio of unpacked to packed bytes, from 64 MiB on: tables of measurements have 3 to 30."""
RATIO_FROM = 64 << 20
"""Unpacked bytes from which the ratio counts: a small file may consist of one repeated row."""
KEPT_BYTES = 64 << 20
"""Unpacked bytes up to which content is kept while its size is not known: a refused file needs no more."""
MOST_DOWNLOAD_BYTES = 1 << 30
"""Most bytes of a downloaded file: EPA's largest daily zip has 10 MB."""
MOST_PAGE_BYTES = 10 << 20
"""Most bytes of an index page: that of a year has 100 kB."""
MOST_ROW_BYTES = 1 << 20
"""Most bytes of a row of delimited text: 10,000 numbers of 17 digits have 200 kB."""
MOST_NPY_HEADER = 10_000
"""Most bytes of the header of an .npy file: numpy evaluates no longer one, and most have 128."""
MOST_BORDER_BYTES = 100 << 20
"""Most bytes of a file of borders: the states in full resolution have 50 MB."""
MOST_NESTED = 100
"""Most levels of lists and blocks in YAML and JSON: files of this package have fewer than ten."""
MOST_SHOWN = 600
"""Most characters of each part of an error: a longer part loses its middle."""
