"""A synthetic CONUS panel of daily PM2.5 with a known truth.

Sites s are placed like monitors: three in four within about 15 km of a metro area, the others scattered.
Days are t. The true concentration in ug/m3 is a background times the accumulation in the air, plus smoke:

    pm25_true(s, t) = 6.2 exp(place(s) + season(s, t) + heat(s, t) + haze(s, t)) (B(s, t) / 3.3)^1.4 + S(s, t)

- place(s): broad bumps (Ohio valley, Southeast, Central Valley +; mountain West, Maine -), an urban kernel
  of 25 km, a Gaussian field of 150 km (sd 0.16) and a nugget (sd 0.06).
  Neighbouring sites predict it; a far region does not. With a gradient g it has the term g (lon + 96) / 15
  too, which sites in other regions predict as well. By default g is 0.
- season(s, t) = (0.10 west - 0.08 east) cos(2 pi (day of year - 15) / 365.25).
  It stands for winter inversions and summer haze.
- heat(s, t) = T'(s, t) times (+0.045 east in summer, -0.060 west in winter).
  The response to a temperature anomaly T' (C) has one sign in the East and the other in the West.
- haze(s, t): a Gaussian field of 400 km (sd 0.32) that no channel shows.
- B(s, t) = exp(-k(s, t)) B(s, t-1) + 1, with the loss k = 0.04 + 0.09 wind + 0.30 (1 - exp(-rain/4)) a day.
  Wind (m/s) disperses, rain (mm) washes out, and calm dry days add up for a week.
  Today's weather does not determine today's B; a 21-day window does.
- S(s, t): 20 fires a year in the West, July to October, of 5 to 15 days each.
  Their peaks are lognormal (median 140, up to many hundreds).
  Their plumes swing about an eastward axis, widen and thin out.

Here west(s) = 1 / (1 + exp((lon + 104) / 2)), and east = 1 - west.

Weather fields are Gaussian in space (length 600 km, by random Fourier features), AR(1) in time, and drift
east by 350 km a day. The channel `smoke` is a plume class like NOAA HMS's: 0 none, 1 light, 2 medium,
3 heavy. It is derived from the smoke with errors. It includes plumes aloft that never reach the ground, and
misses some under cloud.

    pm25 = pm25_true (1 + 0.08 N) + 0.9 N

The result is rounded to 0.1 ug/m3, and some values are slightly negative, like a monitor's. About 20 % of the
days are missing: one site in five samples every third day, and all sites have lost days and gaps of weeks.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm25.errors import InputError
from pm25.limits import MOST_SITE_DAYS

Floats = NDArray[np.float64]

SPIN_UP_DAYS = 30
"""Days before the first one, after which B no longer depends on its initial value: exp(-30 * 0.15) = 0.01."""

CELLS = 4096
"""Cells of a grid that are made together: 13 MB for each array of a year."""

KM_PER_DEGREE = 111.2
"""Kilometres per degree of latitude."""

# Metro areas: lat, lon, population in millions, elevation in m (rounded; enough to place monitors).
CITIES = np.array(
    [
        (40.71, -74.00, 19.6, 10), (34.05, -118.24, 12.9, 90), (41.85, -87.75, 9.3, 180),
        (32.80, -96.90, 7.9, 150), (29.76, -95.40, 7.3, 20), (38.90, -77.04, 6.3, 50),
        (39.98, -75.17, 6.2, 20), (33.75, -84.39, 6.2, 310), (25.80, -80.27, 6.1, 2),
        (33.45, -112.07, 5.0, 340), (42.36, -71.12, 4.9, 20), (34.00, -117.35, 4.7, 300),
        (37.72, -122.20, 4.6, 20), (42.40, -83.15, 4.3, 185), (47.55, -122.28, 4.0, 60),
        (44.97, -93.25, 3.7, 260), (27.97, -82.42, 3.2, 10), (32.78, -117.08, 3.3, 60),
        (39.74, -104.99, 3.0, 1610), (39.29, -76.62, 2.8, 40), (38.63, -90.25, 2.8, 150),
        (28.54, -81.38, 2.7, 30), (35.23, -80.84, 2.7, 230), (29.43, -98.49, 2.6, 200),
        (45.50, -122.65, 2.5, 40), (40.44, -79.99, 2.4, 280), (38.57, -121.47, 2.4, 10),
        (39.11, -84.50, 2.3, 200), (36.17, -115.15, 2.3, 620), (39.08, -94.58, 2.2, 270),
        (39.98, -82.99, 2.1, 250), (39.78, -86.15, 2.1, 220), (41.42, -81.65, 2.1, 220),
        (36.16, -86.78, 2.0, 170), (30.28, -97.74, 2.3, 160), (36.85, -76.25, 1.8, 5),
        (43.03, -88.00, 1.6, 200), (30.33, -81.66, 1.6, 8), (35.47, -97.52, 1.4, 370),
        (35.78, -78.64, 1.4, 100), (35.13, -89.98, 1.3, 90), (37.54, -77.44, 1.3, 50),
        (38.24, -85.75, 1.3, 140), (40.70, -111.90, 1.3, 1310), (41.80, -72.68, 1.2, 25),
        (42.88, -78.80, 1.2, 185), (33.52, -86.81, 1.1, 190), (36.74, -119.79, 1.2, 95),
        (35.37, -119.02, 0.9, 120), (36.15, -95.99, 1.0, 220), (32.22, -110.95, 1.0, 750),
        (41.26, -96.00, 1.0, 320), (35.10, -106.63, 0.9, 1550), (43.60, -116.25, 0.8, 830),
        (31.77, -106.44, 0.9, 1150), (47.66, -117.42, 0.6, 580), (39.53, -119.81, 0.5, 1370),
        (34.74, -92.29, 0.8, 90), (30.45, -91.15, 0.9, 17), (32.30, -90.18, 0.6, 85),
        (41.59, -93.62, 0.7, 270), (43.55, -96.73, 0.3, 440), (46.87, -96.79, 0.3, 275),
        (45.78, -108.50, 0.2, 960), (46.87, -114.00, 0.2, 980), (42.87, -106.31, 0.1, 1560),
        (43.10, -76.15, 0.6, 120), (44.48, -73.15, 0.2, 60), (43.66, -70.30, 0.5, 20),
        (42.33, -122.87, 0.3, 420),
    ]
)  # fmt: skip

# High or low ground away from cities, for a plausible elevation between them: lat, lon, elevation in m.
TERRAIN = np.array(
    [
        (48.5, -113.5, 1900), (44.5, -110.5, 2300), (44.2, -114.5, 2200), (40.3, -105.8, 2700),
        (38.5, -107.0, 2700), (36.0, -105.5, 2500), (40.7, -110.0, 2400), (38.5, -111.7, 2200),
        (35.2, -111.7, 2100), (33.8, -109.5, 2100), (39.3, -116.8, 1900), (43.5, -119.5, 1400),
        (37.0, -118.6, 2600), (39.5, -120.6, 1800), (41.3, -122.3, 1200), (44.2, -121.8, 1400),
        (47.5, -121.2, 1200), (48.5, -120.6, 1400), (46.3, -119.2, 150), (45.0, -118.0, 1200),
        (41.8, -107.5, 2050), (41.0, -103.0, 1400), (38.0, -102.5, 1200), (35.0, -102.0, 1150),
        (32.0, -102.0, 870), (47.5, -106.5, 750), (44.0, -103.5, 1400), (42.5, -99.5, 800),
        (38.5, -98.5, 530), (35.6, -82.5, 900), (37.5, -81.0, 750), (38.8, -79.5, 800),
        (41.3, -78.0, 550), (44.1, -74.2, 600), (44.2, -71.4, 600), (45.8, -69.5, 350),
        (46.0, -90.0, 480), (36.0, -93.0, 400), (30.5, -103.5, 1300), (33.0, -115.5, -20),
        (31.0, -84.0, 60), (27.0, -98.0, 40), (31.5, -93.5, 60), (40.3, -124.0, 150),
    ]
)  # fmt: skip

# The coast, the borders and the Great Lakes' shores, clockwise from Cape Flattery: lon, lat.
OUTLINE = np.array(
    [
        (-124.6, 48.3), (-122.8, 48.2), (-122.7, 49.0), (-95.2, 49.0), (-93.4, 48.6), (-89.7, 48.0),
        (-92.1, 46.75), (-90.8, 46.9), (-87.9, 47.4), (-87.4, 46.5), (-84.6, 46.45), (-84.8, 46.05),
        (-87.0, 45.75), (-88.0, 44.55), (-87.2, 45.1), (-87.95, 43.0), (-87.6, 41.85), (-87.3, 41.62),
        (-86.3, 42.3), (-86.4, 43.7), (-85.6, 45.0), (-84.7, 45.75), (-83.4, 45.05), (-83.95, 43.7),
        (-82.95, 44.0), (-82.5, 43.0), (-83.1, 42.2), (-83.3, 41.7), (-81.7, 41.5), (-78.95, 42.75),
        (-79.05, 43.25), (-76.3, 43.55), (-76.3, 44.1), (-74.8, 45.0), (-71.5, 45.0), (-70.3, 45.9),
        (-69.2, 47.4), (-68.3, 47.3), (-67.85, 47.0), (-67.8, 45.7), (-67.1, 44.8), (-68.8, 44.4),
        (-70.3, 43.6), (-70.8, 42.75), (-71.0, 42.3), (-70.6, 41.9), (-71.3, 41.5), (-73.6, 41.0),
        (-72.6, 40.9), (-74.0, 40.58), (-74.1, 39.8), (-74.9, 39.0), (-75.5, 39.5), (-75.2, 38.5),
        (-76.0, 37.3), (-76.1, 36.9), (-76.1, 35.7), (-76.9, 34.8), (-78.0, 34.0), (-79.3, 33.2),
        (-81.0, 32.1), (-81.4, 30.6), (-80.7, 28.4), (-80.0, 26.8), (-80.1, 25.75), (-80.4, 25.3),
        (-81.1, 25.3), (-81.8, 26.2), (-82.75, 27.8), (-82.7, 28.9), (-84.1, 30.1), (-85.2, 29.8),
        (-86.5, 30.4), (-89.5, 30.3), (-90.0, 29.5), (-91.5, 29.65), (-94.0, 29.75), (-96.0, 28.6),
        (-97.3, 27.6), (-97.3, 26.0), (-99.1, 26.45), (-100.4, 28.6), (-101.4, 29.8), (-102.7, 29.75),
        (-103.2, 29.05), (-104.5, 29.7), (-106.4, 31.75), (-108.2, 31.35), (-111.05, 31.35), (-114.8, 32.5),
        (-117.1, 32.55), (-117.3, 33.1), (-118.4, 33.8), (-119.2, 34.2), (-120.6, 34.6), (-121.9, 36.5),
        (-122.45, 37.4), (-123.7, 38.95), (-124.25, 40.3), (-124.1, 41.7), (-124.4, 42.8), (-123.95, 46.2),
        (-124.1, 47.0),
    ]
)  # fmt: skip

# The broad part of place(s): lat, lon, radius in km, height on the log scale.
BUMPS = np.array(
    [
        (36.4, -119.6, 110, 0.50), (38.2, -121.2, 90, 0.25), (34.0, -117.8, 60, 0.30),
        (40.0, -83.5, 380, 0.28), (33.2, -87.0, 420, 0.28), (30.0, -95.0, 220, 0.20),
        (40.7, -112.0, 60, 0.20), (43.6, -116.5, 70, 0.10), (33.2, -114.5, 150, 0.10),
        (43.0, -109.5, 480, -0.45), (37.0, -106.5, 330, -0.30), (39.5, -117.0, 220, -0.25),
        (45.5, -69.5, 280, -0.35), (47.0, -102.0, 350, -0.15), (45.0, -124.0, 130, -0.15),
        (27.0, -81.0, 200, -0.10),
    ]
)  # fmt: skip

# Regions where western fires start: lat, lon.
FIRE_COUNTRY = np.array(
    [
        (40.2, -121.3), (38.8, -120.3), (36.5, -118.8), (41.3, -123.2), (42.6, -121.2), (44.6, -121.9),
        (48.5, -120.5), (45.5, -114.8), (47.6, -114.6), (44.3, -115.5),
    ]
)  # fmt: skip


def synthesize(
    sites: int = 300,
    days: int = 365,
    seed: int = 0,
    start: str = "2021-01-01",
    with_truth: bool = False,
    gradient: float = 0.0,
) -> pd.DataFrame:
    """Make a synthetic panel table with one row per site and day, by site, then by day.

    The columns are site_id, date, lat, lon (degrees), pm25 (ug/m3; NaN = not observed), elev_m, and the
    channels: crn_tmax_c, crn_tmin_c, crn_prcp_mm, crn_solar_mj_m2, crn_rh_avg (%), wind_speed_ms, smoke (0
    to 3). With `with_truth` there is also pm25_true (ug/m3, every day). The module's docstring has the
    equations, and `gradient` is g in place(s). The same arguments give the same bytes.

    Raises InputError for fewer than 8 sites or 21 days (one window), for more than `MOST_SITE_DAYS`
    site-days, and for a negative seed. It is raised too for a `gradient` beyond -2 to 2, and for a `start`
    that is not a date.
    """
    if sites < 8:
        problem = f"{sites} are too few for training, validation and test"
        raise InputError("synthetic", "sites", problem, "give 8 or more")
    if days < 21:
        raise InputError("synthetic", "days", f"{days} is shorter than one 21-day window", "give 21 or more")
    if sites * days > MOST_SITE_DAYS:
        problem = f"{sites:,} sites x {days:,} days are more than {MOST_SITE_DAYS:,} site-days"
        raise InputError("synthetic", "sites, days", problem, "give fewer of either")
    if not -2 <= gradient <= 2:
        raise InputError("synthetic", "gradient", f"{gradient} is not in -2..2", "give a smaller slope")
    if seed < 0:
        raise InputError("synthetic", "seed", f"{seed} is negative", "give 0 or more")
    dates = _dates(start, days)
    world = _World(seed, dates, gradient)
    lat, lon = _place_sites(world.for_sites, sites)
    made = world.at(lat, lon, world.streams)
    for_monitors = world.for_monitors
    noise, offset = for_monitors.standard_normal((2, sites, days))
    measured = np.round(made.truth * (1 + 0.08 * noise) + 0.9 * offset, 1)
    measured[_unobserved(for_monitors, sites, dates)] = np.nan

    table = pd.DataFrame(
        {
            "site_id": np.repeat([f"S{i:05d}" for i in range(sites)], days),
            "date": np.tile(dates.to_numpy(), sites),
            "lat": np.repeat(lat, days),
            "lon": np.repeat(lon, days),
            "pm25": measured.astype(np.float32).ravel(),
            **{name: values.ravel() for name, values in made.channels.items()},
        }
    )
    if with_truth:
        table["pm25_true"] = made.truth.astype(np.float32).ravel()
    return table


def synthesize_grid(
    lat: Floats,
    lon: Floats,
    first: str | np.datetime64,
    last: str | np.datetime64,
    *,
    days: int = 365,
    seed: int = 0,
    start: str = "2021-01-01",
    gradient: float = 0.0,
) -> pd.DataFrame:
    """Make the covariates and the truth of cells in the world of a panel, by cell, then by day.

    `lat` and `lon` (n,) are the centres of the cells in degrees, and the days are those from `first` to
    `last`. The other arguments are those of the panel (`synthesize`). Weather, haze, fires and the places'
    effects are the same fields as at its sites. Only what is drawn for each place by itself is new: cloud and
    wind of a place and a day, its nugget, and errors of the plume class. The columns are date, lat, lon, the
    channels of a panel, and pm25_true.

    Raises InputError for days that the panel does not have.
    """
    dates = _dates(start, days)
    ends = np.array([first, last], "datetime64[D]") - days_of(start, days)[0]
    begin, end = ends.astype(int).tolist()
    if not 0 <= begin <= end < days:
        problem = f"{first} to {last} are not days of the panel, {dates[0].date()} to {dates[-1].date()}"
        raise InputError("synthetic", "first, last", problem, "choose days of the panel")
    wanted = slice(begin, end + 1)
    parts = []
    blocks = range(0, len(lat), CELLS)
    for number, at in enumerate(blocks):
        world = _World(seed, dates, gradient)  # its streams are drawn again from their start
        own = world.for_cells.spawn(len(blocks))[number].spawn(3)
        here = slice(at, at + CELLS)
        made = world.at(lat[here], lon[here], _Streams(*own))
        shown = {name: values[:, wanted].ravel() for name, values in made.channels.items()}
        cells = len(lat[here])
        places = {
            "date": np.tile(dates.to_numpy()[wanted], cells),
            "lat": np.repeat(lat[here], end + 1 - begin),
            "lon": np.repeat(lon[here], end + 1 - begin),
        }
        truth = made.truth[:, wanted].astype(np.float32).ravel()
        parts.append(pd.DataFrame(places | shown | {"pm25_true": truth}))
    return pd.concat(parts, ignore_index=True)


def days_of(start: str, days: int) -> NDArray[np.datetime64]:
    """Return the days of a panel, (days,) datetime64[D]. Raises InputError for a start that is not a date."""
    return _dates(start, days).to_numpy().astype("datetime64[D]")


def _dates(start: str, days: int) -> pd.DatetimeIndex:
    """Return the days of a panel. Raises InputError for a start that is not a date."""
    try:
        return pd.date_range(start, periods=days, freq="D", unit="us").normalize()
    except ValueError as error:
        raise InputError(
            "synthetic", "start", f"{start!r} is not a date", "write it as 2021-01-01"
        ) from error


@dataclass(frozen=True)
class _Streams:
    """Random streams of what each place has of its own."""

    weather: np.random.Generator
    air: np.random.Generator
    plumes: np.random.Generator


@dataclass(frozen=True)
class _Made:
    """Channels and truth of places."""

    channels: dict[str, NDArray[np.generic]]
    """Channels by name, each (places, days)."""
    truth: Floats
    """True concentration, (places, days)."""


class _World:
    """Fields of a seed on some days, which can be looked up once at any places."""

    def __init__(self, seed: int, dates: pd.DatetimeIndex, gradient: float) -> None:
        # One random stream for each part, so that a change in one does not redraw the others.
        streams = np.random.default_rng(seed).spawn(6)
        self.for_sites, self._weather, self._air, self._fires, self.for_monitors, self.for_cells = streams
        self.dates, self.gradient = dates, gradient

    @property
    def streams(self) -> _Streams:
        """Streams of the fields, which also serve for the sites of the panel."""
        return _Streams(self._weather, self._air, self._fires)

    def at(self, lat: Floats, lon: Floats, own: _Streams) -> _Made:
        """Compute channels and truth at places; `own` draws what each place has of its own."""
        first, last = self.dates[0], self.dates[-1]
        long_dates = pd.date_range(first - pd.Timedelta(days=SPIN_UP_DAYS), last, freq="D")
        day_of_year = long_dates.day_of_year.to_numpy(np.float64)
        elev_m = _elevation(lat, lon)
        weather, anomaly, cloud = _weather(self._weather, own.weather, lat, lon, elev_m, day_of_year)
        background = _background(self._air, own.air, lat, lon, day_of_year, anomaly, weather, self.gradient)[
            :, SPIN_UP_DAYS:
        ]
        smoke_ugm3, aloft = _fires(self._fires, lat, lon, self.dates)
        smoke = _plume_class(own.plumes, smoke_ugm3 + aloft, cloud[:, SPIN_UP_DAYS:])
        days = len(self.dates)
        channels: dict[str, NDArray[np.generic]] = {
            "elev_m": np.repeat(elev_m, days).astype(np.float32).reshape(-1, days),
            **{name: values[:, SPIN_UP_DAYS:].astype(np.float32) for name, values in weather.items()},
            "smoke": smoke,
        }
        return _Made(channels, background + smoke_ugm3)


def inside_outline(lat: Floats, lon: Floats) -> NDArray[np.bool_]:
    """Tell which places are inside OUTLINE, by the number of edges that a ray to the north crosses."""
    (x1, y1), (x2, y2) = OUTLINE.T, np.roll(OUTLINE, -1, axis=0).T
    x, y = np.asarray(lon)[:, None], np.asarray(lat)[:, None]
    spans = (x1 > x) != (x2 > x)
    with np.errstate(divide="ignore", invalid="ignore"):  # vertical edges span nothing
        above = y < y1 + (x - x1) / (x2 - x1) * (y2 - y1)
    return (spans & above).sum(axis=1) % 2 == 1


def _place_sites(rng: np.random.Generator, sites: int) -> tuple[Floats, Floats]:
    """Draw lat and lon of the sites, (sites,) each."""
    urban = rng.random(sites) < 0.75
    places = np.full((sites, 2), np.nan)
    share = CITIES[:, 2] ** 0.6  # big cities have more monitors, but fewer per head
    todo = np.arange(sites)
    while len(todo):
        metro = rng.choice(len(CITIES), size=len(todo), p=share / share.sum())
        jitter = rng.normal(0, 15 / KM_PER_DEGREE, (len(todo), 2))
        jitter[:, 1] /= np.cos(np.deg2rad(39))
        anywhere = rng.uniform([25, -125], [49, -66.9], (len(todo), 2))
        places[todo] = np.where(urban[todo, None], CITIES[metro, :2] + jitter, anywhere).round(5)
        todo = todo[~inside_outline(*places[todo].T)]
    return places[:, 0], places[:, 1]


def _km(lat: Floats, lon: Floats) -> Floats:
    """Flatten places to (n, 2) km east and north of (38, -96)."""
    return KM_PER_DEGREE * np.stack([(lon + 96) * np.cos(np.deg2rad(38)), lat - 38], axis=1)


def _distance_km(lat: Floats, lon: Floats, points: Floats) -> Floats:
    """Compute the distance in km, (n, m), from each place to each of points (m, >= 2) as (lat, lon, ...)."""
    return np.linalg.norm(_km(lat, lon)[:, None] - _km(points[:, 0], points[:, 1]), axis=2)


def _elevation(lat: Floats, lon: Floats) -> Floats:
    """Interpolate the elevation of cities and terrain, weighted by 1 / (distance + 15 km)^3, in m."""
    points = np.concatenate([CITIES[:, [0, 1, 3]], TERRAIN])
    weight = 1 / (_distance_km(lat, lon, points) + 15) ** 3
    return np.round(weight @ points[:, 2] / weight.sum(axis=1))


def _west(lon: Floats) -> Floats:
    """Weight of the West, 0 to 1."""
    return 1 / (1 + np.exp((lon + 104) / 2))


def _field(rng: np.random.Generator, lat: Floats, lon: Floats, length_km: float) -> Floats:
    """Draw a Gaussian field (n,) of unit variance and correlation exp(-d^2 / 2 length^2)."""
    waves = rng.normal(0, 1 / length_km, (200, 2))
    angle = _km(lat, lon) @ waves.T + rng.uniform(0, 2 * np.pi, 200)
    return np.cos(angle) @ rng.normal(0, np.sqrt(2 / 200), 200)


def _moving_field(
    rng: np.random.Generator,
    lat: Floats,
    lon: Floats,
    days: int,
    length_km: float = 600,
    memory: float = 0.85,
    drift_km: float = 350,
) -> Floats:
    """Draw daily Gaussian fields (n, days): `_field` in space, AR(1) in time, moving east."""
    waves = rng.normal(0, 1 / length_km, (80, 2))
    step = memory * np.exp(-1j * waves[:, 0] * drift_km)
    shock = rng.standard_normal((days, 80)) + 1j * rng.standard_normal((days, 80))
    state = np.empty((days, 80), complex)
    state[0] = shock[0]
    for day in range(1, days):
        state[day] = step * state[day - 1] + np.sqrt(1 - memory**2) * shock[day]
    angle = _km(lat, lon) @ waves.T
    return (np.cos(angle) @ state.real.T - np.sin(angle) @ state.imag.T) / np.sqrt(80)


def _weather(
    rng: np.random.Generator,
    own: np.random.Generator,
    lat: Floats,
    lon: Floats,
    elev_m: Floats,
    day_of_year: Floats,
) -> tuple[dict[str, Floats], Floats, Floats]:
    """Make the weather channels, the temperature anomaly (C) and cloudiness (N(0, 1)), all (sites, days).

    `rng` draws the fields, and then `own` what each place has of its own; they may be one stream.
    """
    shape = (len(lat), len(day_of_year))
    warm, moist, windy = (_moving_field(rng, lat, lon, shape[1]) for _ in range(3))
    cloud = 0.9 * moist + np.sqrt(1 - 0.9**2) * own.standard_normal(shape)

    winter = np.cos(2 * np.pi * (day_of_year - 15) / 365.25)
    west = _west(lon)[:, None]
    coast = np.interp(lat, [32.5, 34.5, 38, 40.4, 48.5], [-117.2, -120.5, -123, -124.3, -124.5])
    pacific = np.exp(-np.maximum(lon - coast, 0) / 1.5)[:, None]  # 1 at the west coast, 1/e 130 km inland
    north = (lat - 38)[:, None]

    anomaly = (3.6 + 1.0 * winter) * (1 - 0.5 * pacific) * warm
    yearly = 13.0 + 0.36 * north - 7.0 * pacific
    mean = 13.5 - 0.85 * north + 0.5 * north * pacific - 4.5 * elev_m[:, None] / 1000 - yearly * winter
    mean = mean + anomaly + 3 * west

    # Wet winters and dry summers in the West, the driest in the Southwest; summer showers in the East.
    wetness = -0.25 + west * (-0.55 + 0.25 * winter) + pacific * (0.55 * winter + 0.06 * north)
    excess = cloud + wetness
    rain = 13 * np.maximum(excess, 0) ** 1.6 * (1 - 0.45 * west)
    dryness = west * (1 - pacific) * (1 - 0.8 * winter)
    humidity = np.clip(76 - 21 * dryness + 12 * cloud - 1.1 * anomaly * (1 - west), 8, 100)
    swing = np.clip(12.5 - 0.16 * (humidity - 65) - 2.0 * np.maximum(cloud, 0) - 2 * pacific, 3, 22)
    clear = np.clip(0.52 - 0.15 * cloud + 0.06 * west, 0.12, 0.78)
    sunshine = clear * _extraterrestrial(lat, day_of_year)
    plains = np.exp(-0.5 * ((lon + 100) / 6) ** 2)[:, None]
    calm = -0.12 * west * winter - 0.05 * west + 0.12 * (1 - west) * winter + 0.30 * plains
    wind = 3.0 * np.exp(calm + 0.52 * windy + 0.08 * cloud + 0.12 * own.standard_normal(shape))
    channels = {
        "crn_tmax_c": np.round(mean + swing / 2, 1),
        "crn_tmin_c": np.round(mean - swing / 2, 1),
        "crn_prcp_mm": np.round(rain, 1),
        "crn_solar_mj_m2": np.round(sunshine, 2),
        "crn_rh_avg": np.round(humidity, 1),
        "wind_speed_ms": np.round(wind, 1),
    }
    return channels, anomaly, cloud


def _extraterrestrial(lat: Floats, day_of_year: Floats) -> Floats:
    """Daily solar energy above the atmosphere, MJ/m2, (sites, days): FAO-56 (Allen 1998), equation 21."""
    latitude, turn = np.deg2rad(lat)[:, None], 2 * np.pi * day_of_year / 365
    declination = 0.409 * np.sin(turn - 1.39)
    sunset = np.arccos(-np.tan(latitude) * np.tan(declination))
    height = sunset * np.sin(latitude) * np.sin(declination)
    height = height + np.cos(latitude) * np.cos(declination) * np.sin(sunset)
    return 24 * 60 / np.pi * 0.0820 * (1 + 0.033 * np.cos(turn)) * height


def _place_effect(rng: np.random.Generator, own: np.random.Generator, lat: Floats, lon: Floats) -> Floats:
    """Draw place(s) of the module's docstring, (sites,)."""
    bumps = np.exp(-0.5 * (_distance_km(lat, lon, BUMPS) / BUMPS[:, 2]) ** 2) @ BUMPS[:, 3]
    urban = np.exp(-0.5 * (_distance_km(lat, lon, CITIES) / 25) ** 2) @ (0.10 + 0.03 * np.sqrt(CITIES[:, 2]))
    return bumps + urban + 0.16 * _field(rng, lat, lon, 150) + own.normal(0, 0.06, len(lat))


def _background(
    rng: np.random.Generator,
    own: np.random.Generator,
    lat: Floats,
    lon: Floats,
    day_of_year: Floats,
    anomaly: Floats,
    weather: dict[str, Floats],
    gradient: float,
) -> Floats:
    """Compute the concentration without smoke, ug/m3, (sites, days): the module's equation without S."""
    winter = np.cos(2 * np.pi * (day_of_year - 15) / 365.25)
    west = _west(lon)[:, None]
    east = 1 - west
    season = (0.10 * west - 0.08 * east) * winter
    heat = anomaly * (0.045 * east * np.maximum(-winter, 0) - 0.060 * west * np.maximum(winter, 0))
    haze = 0.32 * _moving_field(rng, lat, lon, len(day_of_year), length_km=400, memory=0.88, drift_km=200)
    place = (_place_effect(rng, own, lat, lon) + gradient * (lon + 96) / 15)[:, None]

    washout = 0.30 * (1 - np.exp(-weather["crn_prcp_mm"] / 4))
    kept = np.exp(-(0.04 + 0.09 * weather["wind_speed_ms"] + washout))
    gathered = np.empty_like(kept)
    box = np.full(len(lat), 3.3)
    for day in range(kept.shape[1]):
        box = kept[:, day] * box + 1
        gathered[:, day] = box
    return 6.2 * np.exp(place + season + heat + haze) * (gathered / 3.3) ** 1.4


def _fires(
    rng: np.random.Generator, lat: Floats, lon: Floats, dates: pd.DatetimeIndex
) -> tuple[Floats, Floats]:
    """Draw smoke at the ground and smoke aloft, both ug/m3 and (sites, days)."""
    ground, aloft = np.zeros((2, len(lat), len(dates)))
    here = _km(lat, lon)
    for year in sorted(set(dates.year)):
        starts = np.arange(0, 100, 5) + rng.integers(0, 5, 20)  # spread, so that every year has fires
        for source, after in zip(rng.permutation(np.tile(FIRE_COUNTRY, (2, 1))), starts, strict=True):
            source = source + rng.normal(0, 0.5, 2)
            first = pd.Timestamp(year, 7, 1) + pd.Timedelta(days=int(after))
            length = int(rng.integers(5, 16))
            peak = rng.lognormal(np.log(140), 0.6)
            flare = np.sin(np.pi * (np.arange(length) + 0.5) / length) * rng.lognormal(0, 0.3, length)
            heading = rng.normal(0, 0.35) + np.cumsum(rng.normal(0, 0.2, length))  # radians north of east
            day = (first - dates[0]).days + np.arange(length)
            seen = (day >= 0) & (day < len(dates))
            east, north = (here - _km(source[:1], source[1:]))[:, :, None].transpose(1, 0, 2)
            along = east * np.cos(heading) + north * np.sin(heading)
            across = north * np.cos(heading) - east * np.sin(heading)
            near = np.exp(-0.5 * (east**2 + north**2) / 90**2)
            width = 100 + 0.30 * np.maximum(along, 0)
            tail = np.exp(-0.5 * (across / width) ** 2) * (100 / width) * np.exp(-along / 1500) * (along > 0)
            plume = peak * flare * np.maximum(near, 0.9 * tail)
            drawn = np.minimum(rng.lognormal(-0.2, 0.6, length), 1.5)  # how much of it reaches the ground
            ground[:, day[seen]] += (plume * np.maximum(near, drawn))[:, seen]
            veil = np.exp(-0.5 * (across / (2.5 * width)) ** 2 - along / 2500) * (along > 0)
            aloft[:, day[seen]] += (0.05 * peak * flare * veil)[:, seen]
    return ground, aloft


def _plume_class(rng: np.random.Generator, column: Floats, cloud: Floats) -> NDArray[np.int8]:
    """Classify a smoke column (ug/m3) as HMS does, with errors, and as 0 under the thickest clouds."""
    judged = column * rng.lognormal(0, 0.5, column.shape)
    judged[cloud > 1.5] = 0
    return np.digitize(judged, [3, 10, 21]).astype(np.int8)


def _unobserved(rng: np.random.Generator, sites: int, dates: pd.DatetimeIndex) -> NDArray[np.bool_]:
    """Draw a mask of the days without a value, (sites, days)."""
    days = len(dates)
    # EPA's every-third-day calendar is the same for all its sites.
    off_calendar = dates.to_numpy().astype("datetime64[D]").astype(int) % 3 != 0
    one_in_three = rng.random((sites, 1)) < 0.2
    lost = rng.random((sites, days)) < 0.03
    longest = max(1, min(25, days // 7))
    day = np.arange(days)
    for _ in range(4):  # up to four gaps a site
        first, length = rng.integers(0, days, (sites, 1)), rng.integers(1, longest + 1, (sites, 1))
        happens = rng.random((sites, 1)) < 0.45 * min(1, days / 365)
        lost |= happens & (day >= first) & (day < first + length)
    return (one_in_three & off_calendar) | lost
