"""``fedrec audit``: exit status, table, JSON."""

from __future__ import annotations

import json

import pytest

from fedrec.cli import main

QUICK = ["audit", "--canaries", "5000", "--items", "200", "--shops", "4", "--min-shops", "3"]


@pytest.mark.slow
def test_the_audit_prints_every_finding_and_leaves_with_0(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(QUICK) == 0
    text = capsys.readouterr().out
    assert "Claim: epsilon 2, delta 1e-06, distributed; 4 shops, 3 answer, 1 of them collude" in text
    for audit in ("noise (5,000 crafted vectors)", "in two rounds", "vectors of 100 C", "ease", "serving joint_dp"):
        assert audit in text
    assert "all audits passed" in text


@pytest.mark.slow
def test_json_holds_settings_verdict_and_figures(capsys):
    assert main([*QUICK, "--epsilon", "1", "--mode", "local", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["is_passed"] is True
    assert record["settings"]["mode"] == "local"
    noise = record["findings"][0]["figures"]
    assert noise["epsilon_claimed"] == 1
    assert noise["epsilon_low"] < 1 < noise["epsilon_high"]


def test_a_failed_audit_leaves_with_1(capsys, monkeypatch):
    from fedrec.simulation import audit
    from fedrec.simulation.audit_claim import Finding

    failed = Finding("noise", "epsilon 2", "epsilon 8", False, "less noise than claimed", {})
    monkeypatch.setattr(audit, "run_audits", lambda settings, **options: [failed])
    assert main(QUICK) == 1
    assert "1 of 1 audits failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--mode", "central"], ["--epsilon", "0"], ["--epsilon", "1e9"], ["--delta", "0.5"], ["--shops", "2"]),
        *(["--colluders", "9"], ["--colluders", "0"], ["--shops", "11", "--min-shops", "6"]),
    ],
)
def test_a_claim_that_cannot_be_made_is_one_line_and_2(wrong, capsys):
    assert main([*QUICK, *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")
