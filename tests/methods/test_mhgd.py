import math

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.mhgd import MHGD, mhgd_loss
from segkd.modules.attention_graph import AttentionGraph
from segkd.testing.cases import make_case

F64 = torch.float64


def softmax(values):
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def reference(student, teacher):
    """Loops over heads and rows; the student's distribution comes first."""
    rows = []
    for head_s, head_t in zip(student.tolist(), teacher.tolist(), strict=True):
        for row_s, row_t in zip(head_s, head_t, strict=True):
            p_s, p_t = (softmax([math.tanh(g) for g in row]) for row in (row_s, row_t))
            rows.append(sum(s * math.log(s / t) for s, t in zip(p_s, p_t, strict=True)))
    return sum(rows) / len(rows)


@pytest.fixture
def graphs():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 5, 5, generator=draw, dtype=F64)
    return student.requires_grad_(), teacher.requires_grad_()


def test_equals_the_equation(graphs):
    student, teacher = graphs
    value = mhgd_loss(student, teacher)
    assert value.item() == pytest.approx(reference(student, teacher), rel=1e-9)
    assert value.item() != pytest.approx(reference(teacher, student), rel=1e-3)


def test_gradient_is_right_and_none_goes_to_the_teacher(graphs):
    student, teacher = graphs
    assert torch.autograd.gradcheck(lambda g: mhgd_loss(g, teacher), student)
    mhgd_loss(student, teacher).backward()
    assert teacher.grad is None


def test_extremes_are_finite_and_bounded(graphs):
    student, teacher = graphs
    for factor in (0.0, 1e6):
        value = mhgd_loss(factor * student, -factor * teacher)
        assert 0 <= value <= 2  # tanh bounds log-ratios
    empty = torch.zeros(3, 0, 0, requires_grad=True)
    assert mhgd_loss(empty, empty) == 0 and mhgd_loss(empty, empty).requires_grad
    half = mhgd_loss(student.bfloat16(), teacher.bfloat16())
    assert half.dtype is torch.float32
    with pytest.raises(ValueError, match="of the same nodes"):
        mhgd_loss(student, teacher[:, :4])


def test_every_conversion_is_checked(graphs):
    """Public code sums over heads and nodes: 8 heads, a batch of 128."""
    student, teacher = (torch.randn(8, 5, 5, dtype=F64) for _ in range(2))
    log_s, log_t = (graph.tanh().log_softmax(-1) for graph in (student, teacher))
    theirs = (log_s.exp() * (log_s - log_t)).sum()
    assert MHGD.conversions.keys() == {"KD_methods_with_TF"}
    conversion = MHGD.conversions["KD_methods_with_TF"]
    torch.testing.assert_close(conversion.at(N=5) * mhgd_loss(student, teacher), theirs)
    assert conversion.at(N=128) == MHGD.paper_weight


# -- the attention and what trains it ----------------------------------------------------------


def random_graph(late=4, early=3, heads=2, width=5):
    torch.manual_seed(3)
    graph = AttentionGraph(late, early, heads=heads, width=width).double()
    for norm in (graph.sender[1], graph.receiver[1], graph.value[0][1]):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return graph


def normalised(layers, row):
    """A linear layer and batch norm with running statistics, from loops."""
    linear, norm = layers
    found = []
    for number, weights in enumerate(linear.weight.tolist()):
        value = sum(w * x for w, x in zip(weights, row, strict=True))
        mean, variance = norm.running_mean[number].item(), norm.running_var[number].item()
        value = (value - mean) / math.sqrt(variance + norm.eps)
        found.append(norm.weight[number].item() * value + norm.bias[number].item())
    return found


def attention_by_loops(graph, late, early):
    heads = []
    for head in range(graph.heads):
        part = slice(head * graph.width, (head + 1) * graph.width)
        sent = [normalised(graph.sender, row)[part] for row in late.tolist()]
        received = [normalised(graph.receiver, row)[part] for row in early.tolist()]
        heads.append(
            [[sum(a * b for a, b in zip(s, r, strict=True)) for r in received] for s in sent]
        )
    return heads


def nodes(number=6, channels=(4, 3)):
    draw = torch.Generator().manual_seed(4)
    return [F.normalize(torch.rand(number, c, generator=draw, dtype=F64), dim=1) for c in channels]


def test_attention_equals_its_equation():
    graph = random_graph().eval()
    late, early = nodes()
    expected = torch.tensor(attention_by_loops(graph, late, early), dtype=F64)
    torch.testing.assert_close(graph(late, early), expected)


def test_the_estimator_equals_its_equation():
    """Heads whose noise is below the row's mean are dropped; all others are concatenated."""
    graph = random_graph(heads=4).eval()
    late, early = nodes()
    noise = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(9))
    attention = attention_by_loops(graph, late, early)
    values = [[max(v, 0) for v in normalised(graph.value[0], row)] for row in early.tolist()]
    cosines = []
    for i in range(6):
        mean = sum(noise[head, i, 0].item() for head in range(4)) / 4
        mixed = []
        for head in range(4):
            shares = softmax(attention[head][i])
            kept = noise[head, i, 0].item() > mean
            for d in range(graph.width):
                mixed.append(kept * sum(shares[j] * values[j][d] for j in range(6)))
        estimate = [
            bias + sum(w * x for w, x in zip(weights, mixed, strict=True))
            for weights, bias in zip(
                graph.estimate.weight.tolist(), graph.estimate.bias.tolist(), strict=True
            )
        ]
        length = math.sqrt(sum(e * e for e in estimate))
        cosines.append(sum(e * v for e, v in zip(estimate, late[i].tolist(), strict=True)) / length)
    expected = sum(1 - cosine for cosine in cosines) / 6
    value = graph.estimate_loss(late, early, torch.Generator().manual_seed(9))
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_fewer_than_two_nodes_have_no_statistics():
    graph = random_graph()
    before = [buffer.clone() for buffer in graph.buffers()]
    for number in (0, 1):
        value = graph.estimate_loss(*nodes(number))
        assert value == 0 and value.requires_grad
    assert all(map(torch.equal, before, graph.buffers()))


def test_the_attention_learns_to_rebuild_the_late_nodes():
    graph = random_graph(channels := 6, 5, heads=4)
    late, early = nodes(32, (channels, 5))
    optimizer = torch.optim.Adam(graph.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(graph.estimate_loss(late, early, draw))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.25 * losses[0]


def test_a_single_head_learns_as_well():
    graph = random_graph(channels := 6, 5, heads=1)
    graph.estimate_loss(*nodes(32, (channels, 5)), torch.Generator().manual_seed(1)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in graph.parameters())


# -- the method --------------------------------------------------------------------------------


def built(**keys):
    return make_case(MHGD, dtype=F64, config=MHGD.Config(nodes="grid", grid=(2, 3), **keys))


def test_the_student_meets_statistics_of_the_teacher():
    """In `loss` the attention of both sides uses those of the first phase, and leaves them."""
    case = built()
    case.inner_terms()  # moves the statistics towards the teacher's
    before = {name: value.clone() for name, value in case.method.state_dict().items()}
    value = case.terms()["stage4_stage5"].value
    assert all(torch.equal(before[n], v) for n, v in case.method.state_dict().items())
    for graph in case.method.graphs:
        graph.sender[1].reset_running_stats()
    assert case.terms()["stage4_stage5"].value != value
    assert case.method.graphs.training


def test_the_attention_learns_from_the_teacher_alone():
    case = built()
    expected = case.fresh().inner_terms()
    other = case.fresh()
    for value in other.student.features.values():
        value.data.normal_()
    found = other.inner_terms()
    assert {k: v.value for k, v in found.items()} == {k: v.value for k, v in expected.items()}
    inner = {id(p) for p in case.method.inner_parameters()}
    assert inner == {id(p) for p in case.method.graphs.parameters()}
    trained = {id(p) for p in case.method.trained_parameters()}
    assert trained == {id(p) for p in case.method.adapters.parameters()}


def test_the_attention_learns_from_the_nodes_that_it_will_compare():
    """Where the student's maps are smaller than the teacher's, both phases see the smaller ones."""
    case, seen = built(), []
    sampler = case.method.sampler

    def recorded(*given):
        seen.append(sampler(*given))
        return seen[-1]

    case.method.sampler = recorded
    case.terms(), case.inner_terms()
    for later, before in zip(seen[0].teacher, seen[1].teacher, strict=True):
        torch.testing.assert_close(before, later)


@pytest.mark.parametrize("kind", ["region", "pixel", "image"])
def test_other_nodes_teach_as_well(kind):
    case = make_case(MHGD, dtype=F64, config=MHGD.Config(nodes=kind))
    terms = case.terms()
    sum(term.value for term in terms.values()).backward()
    assert all(case.student.tap(tap).grad.any() for tap in case.method.needs.student)
    assert all(term.count is None and term.value > 0 for term in terms.values())
    assert case.method.needs.labels == (kind != "image")
    doubled = case.images(torch.arange(4).repeat(2)).terms()
    for name, term in terms.items():
        torch.testing.assert_close(doubled[name].value, term.value)


def test_the_phase_is_a_tenth_of_the_run_or_as_long_as_told():
    assert MHGD().preparation_steps(600) == 60
    assert MHGD(MHGD.Config(attention_steps=7)).preparation_steps(600) == 7
    assert MHGD(MHGD.Config(attention_steps=0)).preparation_steps(600) == 0


def test_sizes_of_the_attention():
    channels = {"stage3": 10, "stage4": 20, "stage5": 40}
    infos = {tap: TapInfo(number, 8) for tap, number in channels.items()}
    for width, expected in ((None, [15, 30]), (7, [7, 7])):
        method = MHGD(MHGD.Config(heads=3, width=width))
        method.build(BuildContext(infos, infos, num_classes=5))
        assert [graph.width for graph in method.graphs] == expected
        assert method.graphs[1].sender[0].weight.shape == (3 * expected[1], 40)
        assert method.graphs[1].receiver[0].weight.shape == (3 * expected[1], 20)


def test_what_cannot_be_related_is_refused():
    with pytest.raises(ConfigError, match="add one"):
        MHGD(MHGD.Config(taps=["head"]))
    case = make_case(MHGD, config=MHGD.Config(nodes="region"))
    batch = case.batch.replace(labels=None)
    with pytest.raises(ConfigError, match="Use nodes: grid"):
        case.method.loss(case.student, case.teacher, batch, Context(batch))
