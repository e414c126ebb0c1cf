"""Simulated storms over a utility's territory: outages whose expected number is known."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets.outage_events import OutageEvents
from graphcl.errors import DataError
from graphcl.training import numpy_rng

_CENTER = (41.6, -72.7)  # degrees north and east
_KM_PER_DEGREE = 111.19  # of latitude
_DAMAGING = 13.0  # m/s: the gust from which trees and lines give way
_DECAY = 0.6  # exponent of the gust profile outside the radius of the strongest wind
_WAVES = 32  # of a random field
_STEPS = 25  # points of a track

_STATIC_NAMES = (
    *("poles [1]", "overhead_share [1]", "canopy_share [1]", "age [a]", "elevation [m]"),
    *("soil_clay_share [1]", "water_share [1]"),  # neither matters
)
_WEATHER_NAMES = (
    *("gust_max [m/s]", "gust_duration [h]", "rain_total [mm]", "rain_max [mm/h]"),
    *("track_min [km]", "heading_east [1]", "heading_north [1]", "ice [mm]"),
)


@dataclass(frozen=True)
class _Kind:
    """A type of storm as it is typically; lengths in km, speeds in m/s, amounts in mm."""

    name: str
    share: float
    ambient: float  # gust far away from the track
    peak: float  # what the vortex adds within its radius
    radius: float
    length: float  # how far along the track the storm keeps its strength
    speed: float  # of the centre
    rain: float
    ice: float


_KINDS = (
    _Kind("thunderstorm", 0.35, 6.0, 19.0, 6.0, 25.0, 14.0, 25.0, 0.0),
    _Kind("rain/wind", 0.35, 9.0, 11.0, 60.0, 200.0, 12.0, 45.0, 0.0),
    _Kind("ice", 0.15, 6.0, 8.0, 80.0, 250.0, 9.0, 20.0, 14.0),
    _Kind("tropical", 0.15, 7.0, 24.0, 45.0, 400.0, 14.0, 130.0, 0.0),
)


@dataclass(frozen=True, eq=False)
class StormSimulation:
    """Simulated events and the truth behind them.

    Shapes:
        - **rate**: float32 ``[E, N]``, expected outages
        - **fragility**: float32 ``[N]``, expected outages per unit of load on poles and lines
        - **track**: float64 ``[E, T, 2]``, degrees north and east of the storm's centre
        - **wind**: float32 ``[E, N]``, highest gust, m/s
    """

    events: OutageEvents
    rate: Tensor
    fragility: Tensor
    track: Tensor
    wind: Tensor


def simulate_storms(
    num_locations: int = 400,
    num_events: int = 24,
    *,
    num_districts: int | None = None,
    spacing: float = 4.0,
    seed: int = 0,
) -> StormSimulation:
    """Simulate storms that cross a territory, and the outages that they leave.

    Locations are the cells of a jittered grid, districts are strips of it from west to east.  The
    centre of a storm takes a straight track; gusts fall off from it as in a modified Rankine
    vortex, stronger to its right, where its own motion adds to the wind.  Above 13 m/s a gust loads
    poles and lines where they are many, old, overhead and among trees, and it throws on them what
    it broke from the trees of the cells upwind, so that a model that looks upwind knows more.
    Rain loosens the ground and ice loads lines by itself.  ``events`` holds what a forecast would
    know: smoothed and noisy weather.  Time and memory grow with events times locations.

    Args:
        num_locations: N.
        num_events: E; event e is the same whatever their number.
        num_districts: At most the columns of the grid, which has about sqrt(N) of them; by default
            four, or all there are.
        spacing: Width of a cell, km.
        seed: Same seed, same simulation.

    Returns:
        Counts are Poisson with mean ``rate``, which is at most the customers of the location.

    Raises:
        DataError: An argument is out of range.

    Source:
        Ours.  Gust profile: the modified Rankine vortex (Depperman, Bulletin of the American
        Meteorological Society 1947).  Random fields: Rahimi and Recht, NeurIPS 2007.
    """
    width = math.isqrt(max(num_locations, 1) - 1) + 1
    if num_locations < 1 or num_events < 1:
        raise DataError(
            f"simulate_storms: num_locations is {num_locations} and num_events {num_events}: both "
            "must be at least 1"
        )
    if num_districts is None:
        num_districts = min(4, width)
    if not 1 <= num_districts <= width:
        raise DataError(
            f"simulate_storms: num_districts is {num_districts}, must be 1 to {width}, the columns "
            f"of a grid of {num_locations} locations"
        )
    if not 0 < spacing < math.inf:
        raise DataError(f"simulate_storms: spacing is {spacing}, must be a positive number of km")
    land = _land(num_locations, width, spacing, numpy_rng(seed, "storms", "land"))
    storms = [_storm(land, numpy_rng(seed, "storms", "event", e)) for e in range(num_events)]
    cell = np.arange(num_locations) % width
    events = OutageEvents(
        location=tuple(f"cell-{i}" for i in range(num_locations)),
        latlon=torch.from_numpy(_latlon(land.xy)),
        static=torch.from_numpy(land.static),
        static_names=_STATIC_NAMES,
        customers=torch.from_numpy(land.customers),
        district=tuple(f"strip-{d}" for d in cell * num_districts // width),
        borders=torch.from_numpy(land.borders),
        event=tuple(f"event-{e}" for e in range(num_events)),
        event_type=tuple(storm.kind for storm in storms),
        weather=torch.from_numpy(np.stack([storm.weather for storm in storms])),
        weather_names=_WEATHER_NAMES,
        outages=torch.from_numpy(np.stack([storm.outages for storm in storms])),
    ).validate("simulated storms")
    return StormSimulation(
        events=events,
        rate=torch.from_numpy(np.stack([storm.rate for storm in storms])),
        fragility=torch.from_numpy(land.fragility),
        track=torch.from_numpy(np.stack([storm.track for storm in storms])),
        wind=torch.from_numpy(np.stack([storm.wind for storm in storms])),
    )


@dataclass(frozen=True)
class _Land:
    """What stays from storm to storm, one row per location."""

    xy: np.ndarray  # [N, 2], km east and north of the centre
    borders: np.ndarray  # [2, B]
    static: np.ndarray  # [N, Fs]
    customers: np.ndarray
    canopy: np.ndarray
    exposure: np.ndarray  # factor on gusts
    fragility: np.ndarray


@dataclass(frozen=True)
class _Passage:
    """How one storm crosses the land; the last two have an entry per location."""

    kind: _Kind
    strength: float  # factor on what its kind is like
    heading: np.ndarray  # [2], unit vector east and north
    center: np.ndarray  # [2], km, where it is strongest
    along: np.ndarray  # km behind or ahead of the centre
    right: np.ndarray  # km to the right of the track


@dataclass(frozen=True)
class _Storm:
    """One event, per location but for its kind and track [T, 2]."""

    kind: str
    track: np.ndarray
    wind: np.ndarray
    rate: np.ndarray
    weather: np.ndarray
    outages: np.ndarray


def _land(num_locations: int, width: int, spacing: float, rng: np.random.Generator) -> _Land:
    cell = np.arange(num_locations)
    xy = np.stack([cell % width, cell // width], axis=1) + rng.uniform(-0.2, 0.2, (len(cell), 2))
    xy = ((xy - xy.mean(axis=0)) * spacing).astype(np.float32)
    east = cell[(cell % width < width - 1) & (cell + 1 < num_locations)]
    north = cell[cell + width < num_locations]

    def noise() -> np.ndarray:
        return rng.standard_normal(num_locations, dtype=np.float32)

    density, relief = _field(xy, 20.0, rng), _field(xy, 30.0, rng)
    customers = np.exp(5.2 + 0.8 * density + 0.3 * noise()).round().clip(5)
    poles = (60 * np.exp(0.4 * density + 0.3 * noise())).round().clip(1)
    overhead = _sigmoid(1.2 - 0.8 * density + 0.5 * noise())
    canopy = _sigmoid(-0.2 - 0.6 * density + 0.9 * _field(xy, 8.0, rng) + 0.6 * noise())
    age = (35 + 9 * _field(xy, 15.0, rng) + 4 * noise()).clip(1, 80)
    elevation = 180 * np.exp(0.7 * relief)
    clay, water = (_sigmoid(_field(xy, 15.0, rng) + 0.3 * noise()) for _ in range(2))
    columns = (poles, overhead, canopy, age, elevation, clay, water)
    return _Land(
        xy=xy,
        borders=np.concatenate(
            [np.stack([east, east + 1]), np.stack([north, north + width])], axis=1
        ),
        static=np.stack(columns, axis=1).astype(np.float32),
        customers=customers.astype(np.float32),
        canopy=canopy,
        exposure=np.exp(0.08 * relief),
        fragility=(poles / 100 * overhead * np.exp(0.03 * (age - 35))).astype(np.float32),
    )


def _storm(land: _Land, rng: np.random.Generator) -> _Storm:
    passage = _passage(land, rng)
    wind, rain, ice = _truth(land, passage, rng)
    rate = _rate(land, passage.heading, wind, rain, ice)
    reach = 3 * float(np.abs(land.xy).max()) + 100  # beyond the land, wherever the centre is
    steps = np.linspace(-reach, reach, _STEPS)
    return _Storm(
        kind=passage.kind.name,
        track=_latlon(passage.center + steps[:, None] * passage.heading),
        wind=wind.astype(np.float32),
        rate=rate,
        weather=_observe(land, passage, wind, rain, ice, rng),
        outages=rng.poisson(rate),
    )


def _passage(land: _Land, rng: np.random.Generator) -> _Passage:
    kind = _KINDS[rng.choice(len(_KINDS), p=[kind.share for kind in _KINDS])]
    strength = math.exp(0.2 * rng.standard_normal())
    angle = rng.normal(math.pi / 6, 0.9)  # westerlies carry most storms of these latitudes east
    heading = np.array([math.cos(angle), math.sin(angle)])
    center = rng.uniform(-1, 1, 2) * (np.abs(land.xy).max() + kind.radius / 2)
    along, right = ((land.xy - center) @ np.stack([heading, [heading[1], -heading[0]]], axis=1)).T
    return _Passage(kind, strength, heading, center, along, right)


def _truth(
    land: _Land, passage: _Passage, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the highest gust, m/s, the rain, mm, and the ice, mm, of each location."""
    kind, aside = passage.kind, np.abs(passage.right)
    fading = np.exp(-0.5 * (passage.along / kind.length) ** 2)
    # Where the radius of the strongest wind passes over a location, that wind is its highest.
    vortex = fading * (kind.radius / aside.clip(kind.radius)) ** _DECAY
    motion = 0.4 * kind.speed * passage.right / (aside + kind.radius)
    wind = kind.ambient + vortex * (passage.strength * kind.peak + motion)
    rain = passage.strength * kind.rain * fading * np.exp(-aside / (3 * kind.radius))
    ice = passage.strength * kind.ice * vortex
    return (
        wind * land.exposure * np.exp(0.12 * _field(land.xy, 8.0, rng)),
        rain * np.exp(0.3 * _field(land.xy, 12.0, rng)),
        ice * np.exp(0.3 * _field(land.xy, 15.0, rng)),
    )


def _rate(
    land: _Land, heading: np.ndarray, wind: np.ndarray, rain: np.ndarray, ice: np.ndarray
) -> np.ndarray:
    """Return the expected outages: fragility times load, at most the customers; float32 [N]."""
    load = ((wind - _DAMAGING).clip(0) / 10) ** 2
    debris = _upwind_mean(land, heading, load * land.canopy)
    total = (load * (0.3 + land.canopy) + 2 * debris) * (1 + rain / 150) + (ice / 15) ** 2
    return np.minimum(land.fragility * total, land.customers).astype(np.float32)


def _observe(
    land: _Land,
    passage: _Passage,
    wind: np.ndarray,
    rain: np.ndarray,
    ice: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return what a forecast knows of the weather, float32 [N, Fw]."""
    kind, num_locations = passage.kind, len(wind)

    def blur(spread: float) -> np.ndarray:
        return np.exp(spread * rng.standard_normal(num_locations, dtype=np.float32))

    # Hours from the chord that a location cuts out of the circle of damaging gusts.
    excess = passage.strength * kind.peak / (_DAMAGING - kind.ambient)
    radius = kind.radius * excess ** (1 / _DECAY) if excess > 1 else 0.0
    chord = 2 * np.sqrt((radius**2 - passage.right**2).clip(0))
    shower = 2 + 2 * kind.radius / _kmh(kind.speed)
    error = rng.normal(0, 5)
    columns = (
        (_smooth(land, wind) + rng.normal(0, 1.5, num_locations)).clip(0),
        chord / _kmh(kind.speed) * blur(0.2),
        _smooth(land, rain) * blur(0.2),
        2 * _smooth(land, rain) / shower * blur(0.3),
        np.abs(passage.right + error),
        np.full(num_locations, passage.heading[0]),
        np.full(num_locations, passage.heading[1]),
        _smooth(land, ice) * blur(0.2),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def _upwind_mean(land: _Land, heading: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the mean over neighbours upwind, weighted by how far upwind; 0 where none is."""
    u, v = land.borders
    step = (land.xy[v] - land.xy[u]) @ heading
    source, target = np.where(step > 0, (u, v), (v, u))
    total = np.bincount(target, np.abs(step), len(value))
    carried = np.bincount(target, np.abs(step) * value[source], len(value))
    return carried / np.maximum(total, np.finfo(np.float64).tiny)


def _smooth(land: _Land, value: np.ndarray) -> np.ndarray:
    """Return the mean over a location and its neighbours."""
    ends = land.borders.ravel()
    others = land.borders[::-1].ravel()
    total = value + np.bincount(ends, value[others], len(value))
    return total / (1 + np.bincount(ends, minlength=len(value)))


def _field(xy: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a random field of mean 0, variance 1 and covariance exp(-d^2 / (2 length^2)) at xy."""
    waves = (rng.standard_normal((2, _WAVES)) / length).astype(np.float32)
    phase = rng.uniform(0, 2 * math.pi, _WAVES).astype(np.float32)
    return math.sqrt(2 / _WAVES) * np.cos(xy @ waves + phase).sum(axis=1)


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def _kmh(speed: float) -> float:
    return 3.6 * speed


def _latlon(xy: np.ndarray) -> np.ndarray:
    """Return degrees north and east, float64 [..., 2], of km east and north of the centre."""
    north = _CENTER[0] + xy[:, 1].astype(np.float64) / _KM_PER_DEGREE
    scale = _KM_PER_DEGREE * math.cos(math.radians(_CENTER[0]))
    return np.stack([north, _CENTER[1] + xy[:, 0].astype(np.float64) / scale], axis=1)
