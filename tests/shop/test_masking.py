"""A shop's keys between messages: what several processes, crashes and repeated rounds cannot make it do."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage, ProtocolError, StoreError
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.secure_round import ask_all, set_up, unmask
from fedrec.federation.terms import Terms
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import PublicInputs
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.shop import masking as masking_module
from fedrec.shop.node import read_shop_files, shop_nodes, simulated_identities, write_shop_files

ROSTER = ("a", "b", "c", "d")
PUBLIC = PublicInputs(np.array([f"item-{i:05d}" for i in range(6)]))


def federation(public=PUBLIC, min_shops=3):
    identities = simulated_identities(len(ROSTER))
    keys = [identity.public for identity in identities]
    secure = Parameters.of(ROSTER, keys, min_shops=min_shops, colluders=1)
    tables = [sparse.csr_matrix(np.eye(1, public.num_items, place, dtype=np.float32)) for place in range(len(ROSTER))]
    return Terms(ROSTER, min_shops, "run", secure=secure), tables, identities


def ready(nodes, terms, public=PUBLIC):
    """A coordinator whose set-up the nodes took part in."""
    run = Coordinator(Popularity(), public, terms)
    by_name = {node.name: node for node in nodes}
    ask_all(set_up(run.secure, 0, 1), lambda shop, step, data: by_name[shop].step(step, data))
    return run, by_name


def upload_and_open(run, by_name, absent=()):
    plan = run.next_plan()
    for name, node in by_name.items():
        if name in absent:
            run.mark_unavailable(name)
        else:
            run.receive(name, node.answer(plan, run.secure.delivery(name)).to_bytes())
    ask_all(unmask(run.secure), lambda shop, step, data: by_name[shop].step(step, data))
    run.close()
    return run.state["popularity"]


def test_a_slow_step_of_one_process_never_writes_over_what_another_did(tmp_path, monkeypatch):
    terms, tables, identities = federation()
    write_shop_files(tmp_path, Popularity(), PUBLIC, terms, tables, identities=identities)
    files = read_shop_files(tmp_path)
    run, by_name = ready([files.node(place) for place in range(4)], terms)
    plan = run.next_plan()
    delivery = run.secure.delivery("a")
    slow, fast = read_shop_files(tmp_path).node(0), read_shop_files(tmp_path).node(0)
    for name, node in by_name.items():
        run.receive(name, node.answer(plan, run.secure.delivery(name)).to_bytes())
    is_inside, may_go_on = threading.Event(), threading.Event()
    keep = masking_module._keep

    def late(path, state):
        if threading.current_thread().name == "slow":
            is_inside.set()
            may_go_on.wait(20)
        keep(path, state)

    monkeypatch.setattr(masking_module, "_keep", late)
    again = threading.Thread(target=lambda: slow.answer(plan, delivery), name="slow")
    again.start()
    assert is_inside.wait(20)
    survivors = run.secure.survivors()
    signing = threading.Thread(target=lambda: fast.step("sign", survivors))
    signing.start()
    signing.join(0.3)
    assert signing.is_alive()  # it waits for the slow one, rather than start from the same state
    may_go_on.set()
    again.join(20)
    signing.join(20)
    other = replace(by_name["a"])
    run.secure._round.uploaded.discard(3)
    run.secure._round.survivors = None
    with pytest.raises(ProtocolError, match="signs one"):
        other.step("sign", run.secure.survivors())


def _answer(folder, place, plan, delivery, queue):
    try:
        queue.put(read_shop_files(folder).node(place).answer(plan, delivery).to_bytes())
    except ProtocolError:
        queue.put(None)


def test_two_processes_that_mask_at_once_send_the_same_bytes(tmp_path):
    public = PublicInputs(np.array([f"item-{i:06d}" for i in range(200_000)]))
    terms, tables, identities = federation(public)
    write_shop_files(tmp_path, Popularity(), public, terms, tables, identities=identities)
    run, _ = ready([read_shop_files(tmp_path).node(place) for place in range(4)], terms, public)
    plan, delivery = run.next_plan(), run.secure.delivery("a")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    racers = [context.Process(target=_answer, args=(tmp_path, 0, plan, delivery, queue)) for _ in range(3)]
    for racer in racers:
        racer.start()
    sent = {queue.get(timeout=60) for _ in racers}
    for racer in racers:
        racer.join()
    assert len(sent - {None}) == 1


def test_a_round_is_masked_anew_after_new_set_ups_only_twice():
    terms, tables, identities = federation()
    nodes = shop_nodes(Popularity(), PUBLIC, terms, tables, identities=identities)
    for _ in range(3):
        run, by_name = ready(nodes, terms)
        assert upload_and_open(run, by_name).sum() == 4
    run, by_name = ready(nodes, terms)
    plan = run.next_plan()
    with pytest.raises(ProtocolError, match="masked 2 rounds anew"):
        by_name["a"].answer(plan, run.secure.delivery("a"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_values_that_are_not_finite_tell_nobody_whose_they_are(value):
    terms, tables, identities = federation()
    tables[2] = tables[2].copy()
    nodes = shop_nodes(Popularity(), PUBLIC, terms, tables, identities=identities)
    wrong = replace(nodes[2], model=Odd(value))
    run, by_name = ready([*nodes[:2], wrong, nodes[3]], terms)
    total = upload_and_open(run, by_name)
    assert np.isfinite(total).all()


class Odd(Popularity):
    """Popularity whose sums are of one odd value."""

    def __init__(self, value):
        super().__init__()
        object.__setattr__(self, "_value", value)

    def contributions(self, spec, histories):
        return OddSums(self._value, histories.shape)


class OddSums:
    def __init__(self, value, shape):
        self.value, self.shape = value, shape

    def norms(self):
        return np.ones(self.shape[0])

    def total(self, weights):
        return np.full(self.shape[1], self.value)


def test_a_round_that_was_given_up_can_be_run_again_under_new_keys():
    terms, tables, identities = federation()
    nodes = shop_nodes(Popularity(), PUBLIC, terms, tables, identities=identities)
    run, by_name = ready(nodes, terms)
    run.next_plan()
    run.abandon()
    assert run.rounds_to_set_up() > 0
    ask_all(set_up(run.secure, run.index, 1), lambda shop, step, data: by_name[shop].step(step, data))
    assert upload_and_open(run, by_name, absent={"d"}).tolist() == [1, 1, 1, 0, 0, 0]


def saved(folder: Path, target: Path, *, without: str = "") -> None:
    """A backup of a shop's keys, or a backup put back."""
    target.mkdir(exist_ok=True)
    for path in folder.glob("shop-00000.*"):
        if path.suffix in (".masking", ".seal") and path.suffix != without:
            shutil.copy2(path, target / path.name)


@pytest.mark.parametrize("without", ["", ".seal"])
def test_an_older_copy_of_the_keys_signs_no_second_set_and_masks_nothing_again(tmp_path, without, caplog):
    terms, tables, identities = federation()
    folder, backup = write_shop_files(tmp_path, Popularity(), PUBLIC, terms, tables, identities=identities), {}
    files = read_shop_files(tmp_path)
    run, by_name = ready([files.node(place) for place in range(4)], terms)
    plan, delivery = run.next_plan(), run.secure.delivery("a")
    for name, node in by_name.items():
        for moment in ("dealt", "uploaded") if name == "a" else ():
            if moment == "uploaded":
                run.receive(name, node.answer(plan, delivery).to_bytes())
            saved(folder, backup.setdefault(moment, tmp_path / moment))
        if name != "a":
            run.receive(name, node.answer(plan, run.secure.delivery(name)).to_bytes())
    by_name["a"].step("sign", run.secure.survivors())
    run.secure._round.uploaded.discard(3)  # a coordinator that means harm names another set
    run.secure._round.survivors = None
    saved(backup["uploaded"], folder, without=without)
    again = read_shop_files(tmp_path).node(0)
    with pytest.raises(ProtocolError, match="no set-up"):
        again.step("sign", run.secure.survivors())
    assert "its keys are erased, none is used twice" in caplog.text
    saved(backup["dealt"], folder, without=without)
    with pytest.raises(BadMessage, match="no set-up"):
        again.answer(plan, delivery)
    run.abandon()
    ask_all(set_up(run.secure, 0, 1), lambda shop, step, data: by_name[shop].step(step, data))
    assert upload_and_open(run, by_name).sum() == 4  # with new keys it takes part again


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_keys_survive_a_crash_at_any_moment_of_their_keeping(tmp_path, monkeypatch, fails_at):
    terms, tables, identities = federation()
    write_shop_files(tmp_path, Popularity(), PUBLIC, terms, tables, identities=identities)
    run, by_name = ready([read_shop_files(tmp_path).node(place) for place in range(4)], terms)
    plan, calls, replace_ = run.next_plan(), [], os.replace

    def crash(*paths):
        calls.append(paths)
        if len(calls) == fails_at:
            raise OSError(5, "the power went off")
        replace_(*paths)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(StoreError, match="power"):
        by_name["a"].answer(plan, run.secure.delivery("a"))
    monkeypatch.undo()
    nodes = {**by_name, "a": read_shop_files(tmp_path).node(0)}
    for name, node in nodes.items():
        run.receive(name, node.answer(plan, run.secure.delivery(name)).to_bytes())
    ask_all(unmask(run.secure), lambda shop, step, data: nodes[shop].step(step, data))
    run.close()
    assert run.state["popularity"].sum() == 4
