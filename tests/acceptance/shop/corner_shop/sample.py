"""The shop's data: made up, small, and dirty in known places."""

import sqlite3
from pathlib import Path

SECRET = "hush7351"
"""Part of every value of a sensitive field, the broken ones included; nothing else contains it."""

CUSTOMERS = ((1, "Ada", f"ada.{SECRET}@example.org"), (2, "Ben", f"ben.{SECRET}@example.org"), (3, "Cem", f"cem.{SECRET}.example.org"))
"""The third has no @ in the address, so one of three waits in quarantine: within the limit."""

PRICES = (("tea", "2.50"), ("bread", "3.20"), ("leaflet", "0.00"))


def write(folder: Path) -> None:
    """Everything the shop's systems hold, below ``folder``."""
    (folder / "landing").mkdir(parents=True)
    articles = "".join(f'<article label="{label}"><price>{price}</price></article>' for label, price in PRICES)
    (folder / "landing" / "prices.xml").write_text(f"<prices>{articles}</prices>")
    with sqlite3.connect(folder / "legacy.db") as legacy:
        legacy.execute("CREATE TABLE CUST (CUST_NO INTEGER, CUST_NAME TEXT, MAIL TEXT)")
        legacy.executemany("INSERT INTO CUST VALUES (?, ?, ?)", CUSTOMERS)
    legacy.close()
    for month in (1, 3, 4):
        orders(folder, month)
    too_many_rejects(folder, 2)


def orders(folder: Path, month: int) -> None:
    """Six orders. Lines 5 and 6 wait in quarantine (no quantity; a card that is none, of an unknown customer); a leaflet is free.

    The shop's route takes no notice of the notes.
    """
    _land(
        folder,
        month,
        f"O-{month}01;1;tea;2;4000123412341234;",
        f"O-{month}02;2;bread;1;4000123412341235;",
        f"O-{month}03;1;leaflet;1;;free",
        f"O-{month}04;2;tea;none;4000123412341236;",
        f"O-{month}05;3;tea;1;{SECRET};",
        f"O-{month}06;2;tea;10;;",
    )


def too_many_rejects(folder: Path, month: int) -> None:
    """Two of three cards are none, which is more than half."""
    _land(folder, month, f"O-{month}01;1;tea;2;{SECRET}-1;", f"O-{month}02;1;tea;2;{SECRET}-2;", f"O-{month}03;1;tea;2;;")


def _land(folder: Path, month: int, *lines: str) -> None:
    (folder / "landing" / f"orders-{month}.csv").write_text("\n".join(("order_id;customer_id;article;quantity;card;note", *lines, "")))
