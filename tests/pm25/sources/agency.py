"""Small AirData and USCRN files."""

import zipfile
from pathlib import Path

import pandas as pd

from pm25.sources import aqs, uscrn

HEADER = (
    '"State Code","County Code","Site Num","Parameter Code","POC","Latitude","Longitude","Datum",'
    '"Parameter Name","Sample Duration","Pollutant Standard","Date Local","Units of Measure","Event Type",'
    '"Observation Count","Arithmetic Mean","Address"'
)


def row(
    value: object,
    *,
    date: str = "2021-01-01",
    site: str = "01-073-0023",
    param: str = "88101",
    poc: int = 1,
    lat: object = 40.0,
    lon: object = -90.0,
    duration: str = "24 HOUR",
    standard: str = "",
    event: str = "None",
    unit: str | None = None,
) -> str:
    state, county, number = site.split("-")
    unit = aqs.UNITS.get(param, "?") if unit is None else unit
    return (
        f'"{state}","{county}","{number}","{param}",{poc},{lat},{lon},"WGS84","a name","{duration}",'
        f'"{standard}","{date}","{unit}","{event}",1,{value},"NO. B\'HAM,SOU R.R., 28TH ST."'
    )


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    text = "\n".join([header, *rows]) + "\n"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem + ".csv", text)
    else:
        path.write_text(text)
    return path


def station(
    number: int, lat: float, *, days: int = 1, first: str = "20210101", lon: float = -90.0, **values: float
) -> str:
    """A station file: every field -9999 but those given by USCRN name."""
    lines = []
    for day in pd.date_range(first, periods=days):
        fields = dict.fromkeys(uscrn.COLUMNS, "-9999.0") | {
            "WBANNO": f"{number:05d}",
            "LST_DATE": f"{day:%Y%m%d}",
            "CRX_VN": "2.622",
            "LONGITUDE": f"{lon:7.2f}",
            "LATITUDE": f"{lat:7.2f}",
            "SUR_TEMP_DAILY_TYPE": "C",
        }
        lines.append(" ".join([*(fields | {k: f"{v:7.1f}" for k, v in values.items()}).values()]))
    return "\n".join(lines) + "\n"
