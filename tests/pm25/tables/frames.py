"""A small table of monitors that the tests of tables change."""

import numpy as np
import pandas as pd
import pyarrow as pa


def frame(sites: int = 9, days: int = 25, seed: int = 0) -> pd.DataFrame:
    """Table of `sites` times `days` rows, by site, with a temperature, rain in tenths and an elevation."""
    rng = np.random.default_rng(seed)
    site, day = np.divmod(np.arange(sites * days), days)
    return pd.DataFrame(
        {
            "site_id": np.array([f"{6 + 2 * s:02}-{37 + s:03}-{1103 + 7 * s}" for s in range(sites)])[site],
            "date": (np.datetime64("2021-02-20") + day).astype("datetime64[s]"),
            "lat": 35.25 + rng.permutation(sites)[site],
            "lon": -100.5 + 2 * rng.permutation(sites)[site],
            "pm25": rng.gamma(4, 2, sites * days).round(1),
            "tmax_c": rng.normal(15, 8, sites * days).round(1),
            "rain": np.maximum(0, rng.normal(-3, 8, sites * days)).round(),
            "elev_m": np.sort(rng.choice(2000, sites, replace=False))[site],
        }
    )


def table(df: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(df, preserve_index=False)
