"""The price list: a source in every row, look-ups by name, contract and region, and a user's own rows, bad ones too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.catalogue import profiles
from stages.prices import COLUMNS, PRICINGS, Price, find, gpu_family, machines, of_gpu, prices, read, rows_of
from stages.problems import StageError

HEADER = "provider,product,gpu,gpu_count,usd_per_hour,pricing,region"


def own(folder: Path, *lines: str) -> Path:
    file = folder / "mine.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def told(file: Path) -> str:
    with pytest.raises(StageError) as caught:
        read(file)
    return str(caught.value)


def test_every_row_has_its_source_and_date_and_no_price_stands_twice() -> None:
    rows = prices()
    keys = [(row.machine, row.pricing, row.region) for row in rows]
    assert len(set(keys)) == len(keys) > 30
    for row in rows:
        assert all((row.provider, row.product, row.region, row.as_of, row.source)), row
        assert row.pricing in PRICINGS
        assert 0.05 < row.usd_per_gpu_hour < 12.0


def test_every_device_of_the_catalogue_can_be_rented_and_so_can_a_machine_without_one() -> None:
    rented = {price.gpu_family for price in prices()}
    assert {gpu_family(profile.device) for profile in profiles().values()} | {"none"} <= rented


def test_spot_is_cheaper_than_the_same_machine_on_demand() -> None:
    spots = [row for row in prices() if row.pricing == "spot"]
    assert spots
    for row in spots:
        dear = find(row.machine, "on-demand")
        assert dear is not None and row.usd_per_hour < dear.usd_per_hour


@pytest.mark.parametrize(
    ("asked", "usd"),
    [
        (("aws/g4dn.xlarge", None, None), 0.526),
        (("aws-g4dn.xlarge", "on-demand", None), 0.526),
        (("aws-g4dn.xlarge-spot", None, None), 0.1891),
        (("AWS/g4dn.xlarge", "spot", "us-west-2"), 0.1837),
        (("gcp-n1-highmem-8-t4", None, None), 0.82),
        (("azure-nc24ads-a100-v4", None, "eastus"), 3.673),
        (("aws/g4dn.xlarge", "spot", "eu-west-3"), None),
        (("aws/g4dn.xlarge", None, "mars"), None),
        (("aws/p4d.24xlarge", "spot", None), None),
        (("?", None, None), None),
    ],
)
def test_a_price_is_found_by_machine_contract_and_region(
    asked: tuple[str, str | None, str | None], usd: float | None
) -> None:
    row = find(*asked)
    assert (None if row is None else row.usd_per_hour) == usd


def test_every_machine_is_found_by_its_own_name() -> None:
    assert len(machines()) == len(set(machines()))
    for row in prices():
        assert find(row.machine, row.pricing, row.region) == row
        assert row in rows_of(row.machine)


def test_machines_of_a_gpu_come_cheapest_first_by_the_gpu() -> None:
    rows = of_gpu("a100")
    assert [row.usd_per_gpu_hour for row in rows] == sorted(row.usd_per_gpu_hour for row in rows)
    assert rows[0].machine == "lambda/gpu-8x-a100"
    assert {row.pricing for row in of_gpu("T4", "spot")} == {"spot"}
    assert of_gpu("B200") == []


def test_the_users_own_rows_go_first_and_are_read_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own(tmp_path, HEADER, "AWS,g4dn.xlarge,T4 16GB,1,0.4,on-demand,us-east-1", 'me,"desk, left",,,0.02,spot,')
    monkeypatch.setenv("RUNG_PRICES", str(file))
    assert prices()[:2] == (
        Price(
            "AWS",
            "g4dn.xlarge",
            "T4 16GB",
            1,
            0.4,
            "on-demand",
            "us-east-1",
            "undated",
            f"the user's own file {file.name}",
        ),
        Price("me", "desk, left", "", 0, 0.02, "spot", "own", "undated", f"the user's own file {file.name}"),
    )
    found = find("aws/g4dn.xlarge")
    assert found is not None and found.usd_per_hour == 0.4
    assert find("me/desk-left", "spot") == prices()[1]
    own(tmp_path, HEADER, "AWS,g4dn.xlarge,T4 16GB,1,0.30,on-demand,us-east-1")
    os.utime(file, ns=(1, 1))
    found = find("aws/g4dn.xlarge")
    assert found is not None and found.usd_per_hour == 0.3


def test_every_bad_row_is_told_at_once(tmp_path: Path) -> None:
    text = told(
        own(
            tmp_path,
            HEADER,
            "me,good,T4,1,0.4,spot,here",
            ",desk,T4,1,0.4,spot,here",
            "me,zero,T4,1,0,spot,here",
            "me,word,T4,1,cheap,spot,here",
            "me,nan,T4,1,nan,spot,here",
            "me,lease,T4,1,0.4,leased,here",
            "me,half,T4,1.5,0.4,spot,here",
            "me,none,,2,0.4,spot,here",
            "me,short,T4",
            "me,long,T4,1,0.4,spot,here,and,more",
            "ME,Good,T4,1,0.5,spot,here",
        )
    )
    for part in (
        "10 problems",
        "line 3, provider: must not be empty",
        "line 4, usd_per_hour: must be US dollars an hour above 0",
        'line 5, usd_per_hour: must be US dollars an hour above 0, and at most 100,000, got "cheap"',
        "line 6, usd_per_hour",
        'line 7, pricing: must be on-demand or spot, got "leased"',
        "line 8, gpu_count: must be a whole number of GPUs",
        "line 9, gpu_count",
        "line 10: must have as many fields as the first line",
        "line 11: must have as many fields as the first line",
        "line 12: must not tell the price of line 2 again, got me, good, spot, here",
    ):
        assert part in text
    assert "line 2," not in text


def test_a_header_that_lacks_something_is_told_with_what_to_write(tmp_path: Path) -> None:
    text = told(own(tmp_path, "provider,product,gpu,usd_per_hours", "me,desk,T4,1.0"))
    assert "must name the columns usd_per_hour, pricing" in text
    assert ",".join(COLUMNS) in text
    assert "Did you mean 'usd_per_hour'?" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (HEADER.encode(), "rows: must be at least 1, got 0"),
        (b"\xff\xfe\x00", "bytes that are no UTF-8"),
        (b"x" * 1_100_000, "more than 1,048,576 bytes"),
    ],
)
def test_files_that_hold_no_prices(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(content)
    assert said in told(file)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_PRICES", str(tmp_path / "none.csv"))
    with pytest.raises(StageError, match="Correct RUNG_PRICES or --prices"):
        prices()


def test_a_count_of_gpus_may_be_written_as_a_decimal(tmp_path: Path) -> None:
    file = own(tmp_path, HEADER, "me,desk,T4 16GB,2.0,0.4,on-demand,home")
    assert [row.gpu_count for row in read(file)] == [2]
