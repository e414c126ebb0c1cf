"""Series on a graph: their rules, what breaks them, their parts, and their clock."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from graphcl.datasets import SpatioTemporalSeries
from graphcl.errors import DataError

NAN = float("nan")


def make(**changes):
    """Return a legal series: four steps of five minutes at three nodes, two channels."""
    values = torch.arange(24.0).reshape(4, 3, 2)
    values[1, 2, 0] = NAN
    series = SpatioTemporalSeries(
        name="road",
        values=values,
        channel_names=("speed [mph]", "occupancy [1]"),
        node=("a", "b", "c"),
        edge_index=torch.tensor([[0, 1, 2, 2], [1, 0, 1, 2]]),
        edge_weight=torch.tensor([0.5, 1.0, 2.0, 3.0]),
        start=np.datetime64("2012-03-01T08:00:00", "s"),
        interval=300,
    )
    return replace(series, **changes)


def dynamic(**changes):
    """Return a legal series with a graph per step, that of step 1 without an edge."""
    return make(edge_ptr=torch.tensor([0, 2, 2, 3, 4]), **changes)


def changed(field, index, value):
    """Return a legal series but for one entry of one tensor."""
    tensor = getattr(make(), field).clone()
    tensor[index] = value
    return make(**{field: tensor})


def same(one, other):
    """Whether two series hold the same to the last bit; missing values are alike."""
    for field in fields(SpatioTemporalSeries):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a.nan_to_num(-7.5), b.nan_to_num(-7.5)):
                return False
        elif a != b:
            return False
    return True


def graphs(series):
    """Return the weighted edges of every step by the names of their ends."""
    found = []
    for step in range(series.num_steps):
        edges, weight = series.graph(step)
        ends = zip(*edges.tolist(), weight.tolist(), strict=True)
        found.append({(series.node[u], series.node[v]): w for u, v, w in ends})
    return found


@pytest.mark.parametrize("series", [make(), dynamic()], ids=["one graph", "a graph per step"])
def test_a_legal_series_passes_unchanged(series):
    assert series.validate() is series
    assert (series.num_steps, series.num_nodes, series.num_channels) == (4, 3, 2)


def test_the_mask_is_what_the_values_lack():
    expected = torch.ones(4, 3, 2, dtype=torch.bool)
    expected[1, 2, 0] = False
    assert torch.equal(make().mask, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": torch.full((4, 3, 2), 7.0)},
        {"values": torch.arange(24.0).reshape(4, 3, 2).index_fill(1, torch.tensor(1), NAN)},
        {"edge_index": torch.empty(2, 0, dtype=torch.int64), "edge_weight": torch.empty(0)},
    ],
    ids=["constant", "a dead sensor", "no edges"],
)
def test_a_dull_series_is_legal(changes):
    make(**changes).validate()


def test_one_edge_may_be_there_at_several_steps():
    edges = torch.tensor([[0, 0, 1], [1, 1, 0]])
    make(
        edge_index=edges, edge_weight=torch.ones(3), edge_ptr=torch.tensor([0, 1, 3, 3, 3])
    ).validate()


EMPTY = torch.empty(0, 3, 2)
RULES = {
    "no node": ({"node": ()}, "node is empty: give at least one"),
    "padded": ({"node": ("a", " b", "c")}, r"node\[1\] is ' b': .* without space around it"),
    "twice": ({"node": ("a", "b", "a")}, "node holds 'a' 2 times: .* unique"),
    "channel twice": ({"channel_names": ("x [1]",) * 2}, r"channel_names holds 'x \[1\]' 2 times"),
    "no unit": ({"channel_names": ("x [1]", "speed")}, "holds 'speed': name the unit in brackets"),
    "text start": ({"start": "2012-03-01"}, r"start is '2012-03-01', must be a datetime64\[s\]"),
    "milliseconds": ({"start": np.datetime64(0, "ms")}, r"start is .* must be a datetime64\[s\]"),
    "no start": ({"start": np.datetime64("NaT", "s")}, r"start is no time \(NaT\)"),
    "no interval": ({"interval": 0}, "interval is 0, must be a whole number of seconds"),
    "half seconds": ({"interval": 0.5}, r"interval is 0\.5, must be a whole"),
    "double": ({"values": torch.zeros(4, 3, 2).double()}, "values is torch.float64, must be .*32"),
    "turned": ({"values": torch.zeros(3, 4, 2)}, r"values has shape \[3, 4, 2\], must be \[T, N, "),
    "flat": ({"values": torch.zeros(4, 3)}, r"values has shape \[4, 3\]"),
    "no step": ({"values": EMPTY}, "values has no step: give at least one"),
    "infinite": (
        ("values", (2, 1, 0), float("inf")),
        r"values\[2, 1, 0\] is inf \(1 such\), 'speed \[mph\]' of node 'b' at 2012-03-01T08:10:00",
    ),
    "missing": (("values", (..., 1), NAN), r"'occupancy \[1\]' is missing everywhere: fill it in"),
    "int edges": ({"edge_index": torch.zeros(2, 4).int()}, "edge_index is torch.int32"),
    "turned edges": ({"edge_index": torch.zeros(4, 2).long()}, r"edge_index has shape \[4, 2\]"),
    "far edge": (
        ("edge_index", (1, 2), 3),
        r"edge_index\[:, 2\] is \[2, 3\] \(1 such\), but the nodes are 0 to 2: number them",
    ),
    "below": (("edge_index", (0, 0), -1), r"edge_index\[:, 0\] is \[-1, 1\]"),
    "edge twice": (("edge_index", (1, 2), 2), r"edge_index holds \[2, 2\] more than once in one"),
    "few weights": ({"edge_weight": torch.ones(3)}, r"edge_weight has shape \[3\], must be \[E\]"),
    "no weight": (("edge_weight", 3, 0.0), r"edge_weight\[3\] is 0\.0 \(1 such\), must be posit"),
    "negative": (("edge_weight", 1, -2.0), r"edge_weight\[1\] is -2\.0"),
    "nan weight": (("edge_weight", 1, NAN), r"edge_weight\[1\] is nan"),
    "infinite weight": (("edge_weight", 1, float("inf")), r"edge_weight\[1\] is inf"),
    "short ptr": ({"edge_ptr": torch.tensor([0, 4])}, r"edge_ptr has shape \[2\], .*\[T \+ 1\]"),
    "falling ptr": (
        {"edge_ptr": torch.tensor([0, 2, 1, 3, 4])},
        "edge_ptr falls after step 1, must never",
    ),
    "ptr lacks an edge": (
        {"edge_ptr": torch.tensor([0, 0, 0, 0, 3])},
        "edge_ptr runs from 0 to 3, must run from 0 to the 4 edges",
    ),
    "edge twice in a step": (
        {"edge_ptr": torch.tensor([0, 4, 4, 4, 4]), "edge_index": torch.ones(2, 4).long()},
        r"edge_index holds \[1, 1\] more than once in one graph",
    ),
}


@pytest.mark.parametrize(("change", "message"), RULES.values(), ids=RULES.keys())
def test_a_broken_rule_names_field_and_place(change, message):
    series = make(**change) if isinstance(change, dict) else changed(*change)
    with pytest.raises(DataError, match=f"^road: .*{message}"):
        series.validate()
    with pytest.raises(DataError, match=f"^a.npz: .*{message}"):
        series.validate("a.npz")


@pytest.mark.parametrize("whole", [make(), dynamic()], ids=["one graph", "a graph per step"])
def test_at_follows_the_order_given_and_keeps_the_edges_inside(whole):
    part = whole.at([2, 1]).validate()
    assert part.node == ("c", "b")
    assert torch.equal(part.values.nan_to_num(-1), whole.values[:, [2, 1]].nan_to_num(-1))
    assert graphs(part) == [
        {ends: weight for ends, weight in graph.items() if "a" not in ends}
        for graph in graphs(whole)
    ]


@pytest.mark.parametrize("whole", [make(), dynamic()], ids=["one graph", "a graph per step"])
def test_a_permutation_and_its_inverse_change_nothing(whole):
    order = torch.tensor([2, 0, 1])
    assert same(whole.at(order).at(order.argsort()), whole)
    assert same(whole.at(torch.tensor([True, False, True])), whole.at([0, 2]))


@pytest.mark.parametrize(("nodes", "message"), [([], "selects nothing"), ([3], "holds 3")])
def test_an_impossible_selection_is_refused(nodes, message):
    with pytest.raises(DataError, match=f"^road: at: nodes {message}"):
        make().at(nodes)


@pytest.mark.parametrize("whole", [make(), dynamic()], ids=["one graph", "a graph per step"])
def test_between_is_a_view_of_values_and_edges(whole):
    part = whole.between(2, 4).validate()
    assert part.time.tolist() == whole.time[2:].tolist()
    assert graphs(part) == graphs(whole)[2:]
    part.values[0, 0, 0] = -5.0
    part.edge_weight[0] = 9.0
    assert whole.values[2, 0, 0] == -5.0
    assert 9.0 in whole.edge_weight.tolist()
    assert part.edge_index.untyped_storage().data_ptr() == (
        whole.edge_index.untyped_storage().data_ptr()
    )


def test_slices_of_a_slice_are_slices_of_the_whole():
    assert same(dynamic().between(1, 4).between(1, 3), dynamic().between(2, 4))


@pytest.mark.parametrize("bounds", [(2, 2), (3, 1), (-1, 2), (0, 5)])
def test_a_slice_without_steps_or_out_of_range_is_refused(bounds):
    with pytest.raises(DataError, match=r"^road: between: start is .* 0 <= start < end <= 4"):
        make().between(*bounds)


def test_each_step_has_the_graph_of_its_edges():
    assert graphs(dynamic()) == [
        {("a", "b"): 0.5, ("b", "a"): 1.0},
        {},
        {("c", "b"): 2.0},
        {("c", "c"): 3.0},
    ]
    assert graphs(make())[0] == graphs(make())[3]
    assert len(graphs(make())[0]) == 4
    for step in (-1, 4):
        with pytest.raises(DataError, match=f"^road: graph: step is {step}, must be 0 to 3"):
            make().graph(step)


def test_seconds_are_the_time_of_each_step():
    series = make(start=np.datetime64("1969-12-28T23:10:00", "s"), interval=420)
    steps = torch.arange(4).reshape(2, 2)
    assert series.seconds(steps).flatten().tolist() == series.time.astype(np.int64).tolist()


def test_repr_counts_and_shows_no_values():
    assert repr(make()) == (
        "SpatioTemporalSeries('road', 4 steps of 300 s from 2012-03-01T08:00:00, 3 nodes, 4 edges, "
        "speed [mph], occupancy [1], 4.2% missing)"
    )
    assert "4 edges over all steps" in repr(dynamic())
