"""The commands about messages: what they print, what they refuse, and what they never do. On a fake queue, with real databases."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from bus_assets import Contract, DropOff, Field, Json, Parameter, PickUp, Route, Table, TextFile, Transform
from bus_assets.cli import message_commands
from bus_assets.cli.message_commands import _arrived
from resources.database import Database
from resources.depot.inbox import REDRIVEN
from resources.depot.mail import WAIT_FOR_A_PERSON, Arrival, Boarded, MessageState
from resources.depot.store import Depot
from resources.errors import BusError, Poison, Refused, Transient
from resources.queue import SqsQueue
from resources.queue_seam import Outgoing, Pointer
from sensors.envelopes import carried
from tests.queue_cli import CliWorld
from tests.queue_world import ORDER, TOTAL, events, order, orders
from tests.world import lose_a_reply

MENDED = (Transform("priced", "SELECT order_id, qty * price AS total FROM messages", TOTAL), events()["log"])
COMMANDS = ("messages", "message", "redrive", "discard", "replay", "dispatch", "pause", "resume", "cancel", "purge", "doctor")


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    return CliWorld(tmp_path, monkeypatch, capsys)


def has_stranded(world):
    world.send(*orders([1, 2, 3, 666]))
    world.deliver()
    assert world.states() == {"delivered": 3, "stranded": 1}
    return world


@pytest.fixture(scope="module")
def unchanged_world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield has_stranded(CliWorld(tmp_path_factory.mktemp("unchanged"), patch))


@pytest.fixture
def stranded(unchanged_world, tmp_path, monkeypatch, capsys):
    """Three orders delivered, one stranded and among the dead letters."""
    shutil.copytree(unchanged_world.root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("home"))
    world = CliWorld(tmp_path, monkeypatch, capsys)
    world.queue.become(unchanged_world.queue)
    world.dead.become(unchanged_world.dead)
    return world


@pytest.fixture
def unchanged(unchanged_world, capsys):
    """As ``stranded``, one for all tests that change nothing."""
    unchanged_world.capsys = capsys
    return unchanged_world


def mended(world):
    world.deploy(events(dead_letters="dead", attempts=1, stops=MENDED))
    world.deliver()
    return world


def aged(world, days):
    """As if everything had happened ``days`` ago."""
    then = (datetime.now(UTC) - timedelta(days=days)).isoformat(sep=" ")[:26]
    world.sql("UPDATE depot_messages SET received_at = :then, changed_at = :then", then=then)
    world.sql("UPDATE depot_trips SET created_at = :then, ended_at = :then WHERE ended_at IS NOT NULL", then=then)
    archive = world.root / "staging" / "archive" / "events"
    for day in list(archive.iterdir()):
        shutil.copytree(day, archive / then[:10], dirs_exist_ok=True)
        shutil.rmtree(day)


@pytest.mark.parametrize("command", [(name,) for name in COMMANDS] + [("depot",), ("depot", "rebuild"), ("depot", "upgrade")], ids=" ".join)
def test_every_command_explains_itself(world, command):
    code, out, err = world.bus_says(*command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: bus {' '.join(command)}" in out


# Looking


def test_messages_are_listed_with_their_number_by_state_on_top(stranded):
    code, out, err = stranded.bus_says("messages")
    assert (code, err) == (0, "")
    assert out.startswith("events: 3 delivered, 1 stranded\n")
    assert "666 is too much for me" in out
    assert "O-1" not in out  # no body


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (("events",), [1, 2, 3, 4]),
        (("--state", "stranded"), [4]),
        (("--key", "sqs:m-2"), [2]),
        (("--limit", "2", "--after", "1"), [2, 3]),
        (("--since", "2001-01-01"), [1, 2, 3, 4]),
        (("--since", "2101-01-01"), []),
        (("nowhere",), []),
    ],
)
def test_messages_are_chosen(stranded, given, ids):
    told = stranded.told("messages", *given)
    assert [message["id"] for message in told["messages"]] == ids
    assert all("body" not in message for message in told["messages"])


def test_messages_of_a_trip_and_the_counts_of_a_route(stranded):
    trip = stranded.messages()[0].trip
    told = stranded.told("messages", "events", "--trip", trip)
    assert {message["trip"] for message in told["messages"]} == {trip}
    assert told["counts"]["events"]["by_state"]["delivered"] == 3


def test_a_route_without_messages_says_which_have_some(stranded):
    _, _, err = stranded.bus_says("messages", "evnts")
    assert "no messages of route 'evnts'; the depot has messages of events" in err


def test_a_page_that_is_full_says_how_to_go_on(stranded):
    assert "--after 2" in stranded.bus_says("messages", "--limit", "2")[2]


def test_one_message_whole_and_its_body_on_demand(stranded):
    told = stranded.told("message", "1")
    assert (told["key"], told["state"], told["attributes"]["message_id"]) == ("sqs:m-1", "delivered", "m-1")
    assert "body" not in told
    assert json.loads(stranded.told("message", "1", "--body")["body"])["order_id"] == "O-1"
    assert "key: sqs:m-1" in stranded.bus_says("message", "1")[1]


def test_a_body_with_sensitive_fields_is_shown_only_on_purpose(world):
    secret = Contract((*ORDER.fields, Field("card", sensitive=True)))
    world.deploy(events(decode=Json(secret)))
    world.send(order(1) | {"card": "4111"})
    world.tick()
    assert "sensitive fields (card); --reveal-sensitive" in world.refused("message", "1", "--body")
    assert "4111" in world.told("message", "1", "--body", "--reveal-sensitive")["body"]
    world.deploy(events(name="other"))
    assert "no route 'events' that would say what is sensitive" in world.refused("message", "1", "--body")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("messages", "--state", "lost"), "'lost' is none of waiting, aboard"),
        (("message", "99"), "no message 99; `bus messages` lists them"),
        (("redrive", "events", "--reason", "x"), "say which: --id ID …, --state STATE …, --since and --until, --all, or"),
        (("redrive", "events", "--all", "--since", "2001-01-01", "--reason", "x"), "say which"),
        (("redrive", "events", "--from-dead-letters", "--until", "2001-01-01"), "say which"),
        (("redrive", "events", "--since", "2001-01-01"), "needs a reason"),
        (("redrive", "events", "--id", "4", "--until", "2001-01-01", "--reason", "x"), "that have their bodies and were received then"),
        (("redrive", "events", "--all", "--id", "1", "--reason", "x"), "say which"),
        (("redrive", "events", "--all"), "--reason"),
        (("redrive", "events", "--all", "--reason", " "), "needs a reason"),
        (("redrive", "events", "--state", "delivered", "--reason", "x"), "'delivered' is none of stranded, quarantined, held"),
        (("redrive", "events", "--id", "1", "--reason", "x"), "are not stranded or quarantined or held or discarded messages of route"),
        (("redrive", "evnts", "--all", "--reason", "x"), "no route 'evnts'; did you mean 'events'?"),
        (("replay", "events", "--again", "--id", "1"), "needs a reason"),
        (("replay", "events", "--again", "--reason", "x"), "say which: --since, --until, or --id"),
        (("replay", "evnts"), "did you mean 'events'?"),
        (("pause", "evnts", "--reason", "x"), "did you mean 'events'?"),
        (("resume", "evnts"), "did you mean 'events'?"),
        (("cancel", "no-such-trip", "--reason", "x"), "the depot has no trip 'no-such-trip'"),
        (("dispatch", "evnts"), "did you mean 'events'?"),
        (("purge", "--older-than", "soon"), "'soon' is no age: a number and a unit, as 30d, 2w or 36h"),
        (("purge", "--older-than", "1h"), "must be 1d or more"),
        (("purge", "--older-than", "30d", "--keys", "14d"), "a message may come again for 28 days"),
        (("purge", "evnts", "--older-than", "30d"), "did you mean 'events'?"),
        (("depot", "rebuild", "evnts"), "did you mean 'events'?"),
        (("account", "evnts"), "the depot has no trip 'evnts', and module bus_routes_of_a_test no route of that name; there are events"),
    ],
    ids=lambda wrong: " ".join(wrong) if isinstance(wrong, tuple) else "",
)
def test_what_is_wrong_with_a_command_and_what_is_right(unchanged, wrong, said):
    before = unchanged.messages()
    assert said in unchanged.refused(*wrong)
    assert unchanged.messages() == before


# Round again


def test_a_redrive_lets_it_ride_again_and_twice_is_harmless(stranded):
    assert stranded.told("redrive", "events", "--state", "stranded", "--reason", "mended")["redriven"] == 1
    assert stranded.told("redrive", "events", "--all", "--reason", "once more")["redriven"] == 0
    mended(stranded)
    assert stranded.told("redrive", "events", "--all", "--reason", "once more")["redriven"] == 0
    assert stranded.logged() == ["O-1", "O-2", "O-3", "O-666"]


def test_every_reason_that_a_person_gives_is_kept_and_shown(stranded):
    stranded.bus_says("redrive", "events", "--id", "4", "--reason", "the price was mended")
    assert "redriven: the price was mended" in stranded.bus_says("messages", "events")[1]
    mended(stranded)
    stranded.bus_says("replay", "events", "--id", "4", "--again", "--reason", "the table was lost")
    said = [(one["what"], one["reason"], one["generation"]) for one in stranded.told("message", "4")["decisions"]]
    assert said == [("redriven", "the price was mended", 1), ("delivered again", "the table was lost", 2)]
    listed = {message["id"]: message["decisions"] for message in stranded.told("messages", "events")["messages"]}
    assert (len(listed[4]), listed[1]) == (2, [])
    out = stranded.bus_says("message", "4")[1]
    assert out.index("redriven: the price was mended") < out.index("delivered again: the table was lost")


@pytest.mark.parametrize(("given", "kept"), [(("--reason", "the deploy is mended"), "the deploy is mended"), ((), "no reason was given")])
def test_why_dead_letters_were_brought_back_is_kept(stranded, given, kept):
    stranded.dead.send([Outgoing(json.dumps(order(9)), {"bus-key": "of-another-depot"})])
    stranded.bus_says("redrive", "events", "--from-dead-letters", *given)
    for number in ("4", "5"):
        (decision,) = stranded.told("message", number)["decisions"]
        assert (decision["what"], decision["reason"]) == ("from the dead letters", kept)


def test_why_a_trip_was_cancelled_is_told_of_its_messages_after_they_are_redriven(world):
    world.send(order(1))
    (departure,) = world.tick().departures
    world.bus_says("cancel", departure.trip, "--reason", "wrong prices")
    world.bus_says("redrive", "events", "--all", "--reason", "right prices")
    decided = world.told("message", "1")["decisions"]
    assert [(one["what"], one["reason"], one["generation"]) for one in decided] == [
        ("cancelled", "wrong prices", 0),
        ("redriven", "right prices", 1),
    ]


def test_a_redrive_takes_those_that_were_received_in_a_span_of_time(world):
    world.send("{one", "{two", "{three")
    world.tick()
    for number, day in ((1, "2026-03-01"), (2, "2026-03-02"), (3, "2026-03-03")):
        world.sql("UPDATE depot_messages SET received_at = :then WHERE id = :id", then=f"{day} 12:00:00.000000", id=number)
    span = ("--since", "2026-03-02T12:00", "--until", "2026-03-03")
    assert world.told("redrive", "events", *span, "--reason", "the hours of the bad deploy")["redriven"] == 1
    assert [message.state for message in world.messages()] == ["quarantined", "waiting", "quarantined"]
    assert (
        "nothing is stranded and was received then"
        in world.bus_says("redrive", "events", "--state", "stranded", "--since", "2026-03-01", "--reason", "x")[1]
    )
    assert world.told("redrive", "events", "--until", "2026-03-01T12:00", "--reason", "x")["redriven"] == 0
    assert world.told("redrive", "events", "--since", "2026-03-03", "--state", "quarantined", "--reason", "x")["redriven"] == 1
    assert world.states() == {"quarantined": 1, "waiting": 2}


def test_a_redrive_says_which_a_newer_message_has_replaced(world):
    """The newer one waits for a person too."""
    board = world.bus.depot.inbox.board
    board("events", [Arrival("old", b"{}", subject="s", sequencer="1", problem="broken")])
    board("events", [Arrival("new", b"{}", subject="s", sequencer="2", problem="broken")])
    said = world.bus_says("redrive", "events", "--all", "--reason", "mended")[1]
    assert said == ("route 'events': 1 redriven, and waiting again; 1 superseded, as a newer message of the same subject has come since\n")
    assert world.states() == {"waiting": 1, "superseded": 1}


def test_redriving_says_if_the_route_is_paused(stranded):
    stranded.bus_says("pause", "events", "--reason", "moving house")
    _, out, err = stranded.bus_says("redrive", "events", "--id", "4", "--reason", "x")
    assert "1 redriven" in out
    assert "the route is paused (moving house): `bus resume events`" in err


def test_dead_letters_come_back_into_the_depot_once(stranded):
    assert stranded.told("redrive", "events", "--from-dead-letters") == {"route": "events", "from": "dead", "redriven": 1}
    assert stranded.dead.depth().waiting == 0
    mended(stranded)
    assert stranded.logged() == ["O-1", "O-2", "O-3", "O-666"]
    assert "nothing lies there" in stranded.bus_says("redrive", "events", "--from-dead-letters")[1]


def test_what_came_back_from_the_dead_letters_is_told_in_words(stranded):
    stranded.bus_says("redrive", "events", "--from-dead-letters")
    stranded.dead.send([Outgoing('{"order_id": "O-9"}', carried("sqs:m-1", 0, None, None))])
    said = stranded.bus_says("redrive", "events", "--from-dead-letters")[1]
    assert said == "from queue dead: 1 duplicate (1 with another body), left as it is\n"
    assert _arrived(Boarded(1, 2, 3, 4, 0, 5, 6, 7)) == (
        "3 redriven, and waiting again; 1 new, and waiting; 2 duplicates, left as they are; 4 superseded, as newer ones came before; "
        "5 ignored; 6 held; 7 that waited replaced by newer ones"
    )


def test_without_messages_it_is_said_once(world):
    assert world.bus_says("messages") == (0, "", "no messages\n")
    assert "no such messages" not in world.bus_says("messages", "events")[2]
    world.bus.depot.inbox.pause("events", "moving house")
    code, out, err = world.bus_says("messages", "events")
    assert (code, err) == (0, "")
    assert out.startswith("events: no messages, PAUSED since")


def test_a_dead_letter_that_was_delivered_meanwhile_is_a_duplicate(stranded):
    stranded.bus_says("redrive", "events", "--all", "--reason", "x")
    mended(stranded)
    assert stranded.told("redrive", "events", "--from-dead-letters")["duplicates"] == 1
    stranded.deliver()
    assert stranded.logged() == ["O-1", "O-2", "O-3", "O-666"]


def test_killed_between_the_depot_and_the_queue_a_dead_letter_comes_again_as_a_duplicate(stranded):
    stranded.dead.delete = lambda received: 0
    assert stranded.told("redrive", "events", "--from-dead-letters")["redriven"] == 1
    del stranded.dead.delete
    stranded.dead.expire()
    assert stranded.told("redrive", "events", "--from-dead-letters")["duplicates"] == 1
    assert stranded.states() == {"delivered": 3, "waiting": 1}


def test_on_a_real_queue_a_dead_letter_comes_back_under_its_identity(tmp_path, monkeypatch, capsys, aws):
    """SqsQueue and an emulator, from the first send to the redriven row."""
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("cli-orders", "cli-dead"):
        aws.client("sqs").create_queue(QueueName=name)
    world = CliWorld(tmp_path, monkeypatch, capsys)
    real = {"order_events": SqsQueue(name="cli-orders"), "dead": SqsQueue(name="cli-dead")}
    world.bus.systems.update(real)
    world.deploy(world.route)
    real["order_events"].send([Outgoing(json.dumps(body)) for body in orders([1, 666, 2])])
    world.told("dispatch", "events", "--until-quiet", "--wait", "1", code=1)
    assert world.states() == {"delivered": 2, "stranded": 1}
    world.deploy(events(dead_letters="dead", attempts=1, stops=MENDED))
    assert world.told("redrive", "events", "--from-dead-letters", "--reason", "mended")["redriven"] == 1
    assert world.told("dispatch", "events", "--wait", "0")["trips"][0]["state"] == "delivered"
    assert world.logged() == ["O-1", "O-2", "O-666"]
    assert real["dead"].depth().waiting == 0


def test_a_route_without_dead_letters_says_what_to_do_instead(world):
    world.deploy(events())
    assert "names no queue for dead letters" in world.refused("redrive", "events", "--from-dead-letters")


def test_a_replay_only_lists_and_again_delivers_once_more(stranded):
    before = stranded.messages()
    told = stranded.told("replay", "events", "--since", "2001-01-01")
    assert told == {"route": "events", "messages": [1, 2, 3], "sent again": 0}
    assert "3 in all, every one applied: nothing is done without `--again" in stranded.bus_says("replay", "events")[1]
    assert stranded.messages() == before
    stranded.deliver()
    assert stranded.logged() == ["O-1", "O-2", "O-3"]
    assert stranded.told("replay", "events", "--id", "2", "--again", "--reason", "the table was emptied")["sent again"] == 1
    stranded.deliver()
    assert stranded.logged() == ["O-1", "O-2", "O-2", "O-3"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"key": "order_id"},
            "overwrites what newer ones have left there; replay those too, or let the newer ones stay by Table(…, newest=",
        ),
        ({"key": "order_id", "newest": "qty"}, None),
        ({"key": "order_id", "mode": "delete"}, "takes away what newer ones have left there; replay those too"),
        ({}, "adds its rows once more (append)"),
        ({"key": "order_id", "mode": "accumulate", "sums": ("qty",)}, "is added to the sums once more (accumulate)"),
    ],
)
def test_a_replay_says_where_older_values_come_back_or_rows_count_twice(world, table, said):
    counted = Transform("counted", "SELECT order_id, qty FROM messages", Contract((Field("order_id"), Field("qty", "integer"))))
    world.deploy(events(stops=(counted, DropOff("log", Table("warehouse", "log", create=True, **table), of="counted"))))
    world.send(order(1))
    world.deliver()
    for more in ((), ("--again", "--reason", "x")):
        _, _, err = world.bus_says("replay", "events", "--id", "1", *more)
        assert (f"table log: a message that is delivered again {said}" in err) if said else "table log" not in err


def test_after_restoring_a_warehouse_what_has_no_receipt_is_delivered_again(world):
    """As docs/production.md says."""
    for number in (1, 2, 3):
        world.send(order(number))
        world.deliver()
    with closing(sqlite3.connect(world.root / "warehouse.db")) as warehouse, warehouse:
        warehouse.execute("DELETE FROM log WHERE order_id <> 'O-1'")
        for table in ("bus_outcomes", "bus_applied", "bus_receipts"):
            warehouse.execute(f"DELETE FROM {table} WHERE trip <> (SELECT trip FROM bus_receipts WHERE key = 'sqs:m-1')")
        kept = {key for (key,) in warehouse.execute("SELECT key FROM bus_receipts WHERE route = 'events'")}
    assert "receipts were deleted, or messages were lost" in world.bus_says("account", "events")[1]
    delivered = world.told("messages", "events", "--state", "delivered", "--limit", "1000000")["messages"]
    lost = [message["id"] for message in delivered if message["key"] not in kept]
    assert lost == [2, 3]
    chosen = [argument for number in lost for argument in ("--id", str(number))]
    assert world.told("replay", "events", *chosen, "--again", "--reason", "restored")["sent again"] == 2
    world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3"]
    assert world.told("account", "events")["balanced"]


def test_a_route_with_another_name_knows_none_of_the_old_ones_messages(world):
    world.send(order(1))
    world.deliver()
    world.deploy(events(name="happenings"))
    world.queue.duplicate("m-1")
    world.deliver()
    assert world.logged() == ["O-1", "O-1"]


def test_a_replay_says_which_it_leaves_out(stranded):
    _, out, err = stranded.bus_says("replay", "events", "--id", "1", "--id", "4")
    assert "sqs:m-1" in out
    assert "sqs:m-4" not in out
    assert "left out: 4: not delivered" in err


def test_the_commands_know_the_states_that_messages_have():
    """They name them without the depot's modules, which would be loaded for every help."""
    assert get_args(MessageState) == message_commands.STATES
    assert message_commands.WAIT_FOR_A_PERSON == WAIT_FOR_A_PERSON
    assert message_commands.REDRIVEN == REDRIVEN


def test_rows_of_a_message_that_is_wholly_quarantined_are_redriven_not_released(world):
    world.send(order(1), {"order_id": "X", "qty": 0, "price": "1"})
    world.deliver()
    (row,) = world.bus.depot.quarantined("events")
    said = world.refused("quarantine", "release", "--route", "events", "--stop", "messages", str(row.id))
    assert "its message is quarantined, not delivered, and brings its rows with it" in said
    assert "held, its message 2 is quarantined: `bus redrive events --id 2 --reason …`" in world.bus_says("quarantine", "list")[1]


def test_a_rejected_row_names_its_message(world):
    """Also one that a transform made anew, and one of a message for which nothing could be read."""
    gross = Contract((Field("order_id"), Field("qty", "integer", minimum=2)), max_rejected=0.9)
    anew = Transform("anew", "SELECT order_id, qty FROM messages", gross, grain="changed", combine="alone")
    world.deploy(events(decode=Json(ORDER, records="orders"), stops=(anew, DropOff("log", Table("warehouse", "log", create=True)))))
    world.send({"orders": [order(1), order(2, qty=2)]})
    world.deliver()
    (row,) = world.told("quarantine", "list")
    assert row["message"] == 1
    shown = world.told("quarantine", "show", str(row["id"]))
    assert (shown["message"], shown["message_key"]) == (1, "sqs:m-1")
    out = world.bus_says("quarantine", "show", str(row["id"]))[1]
    assert f"place: row {row['row_id']}, of message 1\nmessage: 1, key sqs:m-1\n" in out


def test_an_unreadable_row_is_at_its_message_not_at_a_line_of_that_number(world):
    named = PickUp("lines", TextFile("landing", "{message.file}"), Contract((Field("sku", unique=True),), max_rejected=0.9))
    log = DropOff("log", Table("warehouse", "log", create=True), of="lines")
    world.deploy(events(decode=Json(Contract((Field("file", required=True),))), stops=(named, log)))
    world.land("sku\na\na\n", "one.csv")
    world.send({"file": "one.csv"}, {"file": "gone.csv"})
    world.deliver()
    gone, twice = sorted(world.told("quarantine", "list"), key=lambda row: row["position"] or 0)
    said = world.bus_says("quarantine", "show", str(gone["id"]))[1]
    assert "place: landing, message 2\nmessage: 2, key sqs:m-2\n" in said
    assert (twice["unit"], twice["reasons"][0]["message"]) == ("line", "'a' is the same as one.csv, line 2")


def counted(world, *more):
    """Per rule the rows, and those of them that a release would take."""
    return {one["rule"]: (one["rows"], one["releasable"]) for one in world.told("quarantine", "counts", *more)}


def test_what_is_counted_as_releasable_is_what_a_release_takes(world, monkeypatch):
    def deploy(**more):
        fields = (Field("order_id", pattern="^O-", **more), Field("qty", "integer"))
        pick_up = PickUp("orders", TextFile("landing", "orders.csv"), Contract(fields, max_rejected=0.9))
        world.deploy(Route(name="files", stops=(pick_up, DropOff("log", Table("warehouse", "files", create=True)))))

    deploy(unique=True)
    world.land("order_id,qty\nO-1,1\nO-1,2\nX-2,3\nX-4,x\nO-5,4,5\n")
    world.told("drive", "files")
    once = {"order_id: pattern ^O-": (2, 2), "qty: type integer": (1, 1), "order_id: unique": (1, 0), "readable": (1, 0)}
    assert counted(world) == once
    may = [row["id"] for row in world.told("quarantine", "list") if row["releasable"]]
    assert (len(may), world.told("quarantine", "show", str(may[0]))["releasable"]) == (2, True)
    with monkeypatch.context() as patch:
        patch.setenv("BUS_MODULE", "no_such_module_anywhere")
        assert "told without the contracts: there is no module" in world.bus_says("quarantine", "counts")[2]
        assert counted(world) == once
    deploy()
    assert counted(world) == once | {"order_id: unique": (1, 1)}
    (driven,) = world.told("quarantine", "release", "--route", "files", "--stop", "orders", "--all")
    assert len(world.bus.depot.quarantined(state="released")) == 3
    assert counted(world, "--state", "released") == {rule: (rows, 0) for rule, (rows, _) in once.items() if rule != "readable"}
    assert driven["state"] == "delivered"
    world.sql("UPDATE depot_trips SET state = 'failed'")
    assert {releasable for _, releasable in counted(world).values()} == {0}


def test_rows_of_a_whole_message_keep_no_other_from_being_released(world):
    bad = {"order_id": "X", "qty": 1, "price": "1"}
    lenient = Contract(ORDER.fields, max_rejected=0.9)
    world.deploy(events(decode=Json(lenient, records="orders")))
    world.send({"orders": [order(1), bad]}, {"orders": [bad]})
    world.deliver()
    assert counted(world) == {"order_id: pattern ^O-": (2, 1)}
    err = world.bus_says("quarantine", "release", "--route", "events", "--stop", "messages", "--all")[2]
    assert "left in quarantine: 1 rows" in err
    assert "`bus redrive events --id MESSAGE --reason …`" in err
    assert [row.message for row in world.bus.depot.quarantined(state="released")] == [1]


# Given up for good


def test_a_discarded_message_is_accounted_for_and_no_concern_any_more(stranded):
    stranded.send("nonsense")
    stranded.deliver()
    code, out, _ = stranded.bus_says("discard", "events", "--state", "stranded", "--reason", "a test order")
    assert (code, out) == (0, "route 'events': 1 discarded: a test order\n")
    assert stranded.told("discard", "events", "--id", "5", "--reason", "not ours") == {"route": "events", "discarded": 1}
    out = stranded.bus_says("messages")[1]
    assert out.startswith("events: 3 delivered, 2 discarded\n")
    assert "discarded: a test order" in out
    out = stranded.bus_says("message", "4")[1]
    assert "666 is too much for me" in out
    assert "UTC discarded: a test order" in out
    assert not any("stranded:" in one["wrong"] or "quarantined:" in one["wrong"] for one in stranded.told("doctor", code=1))
    told = stranded.told("account", "events")
    assert (told["received"], told["by_state"]["discarded"], told["balanced"]) == (5, 2, True)
    assert {line["status"] for line in told["recounts"]} == {"agrees"}
    assert "nothing is stranded or quarantined or held" in stranded.bus_says("discard", "events", "--all", "--reason", "x")[1]


def by_aws(world):
    """`StartMessageMoveTask`: back to the queue, under a new id."""
    world.queue.send([message.outgoing for message in world.dead._messages])
    world.deliver()


def by_bus(world):
    world.bus_says("redrive", "events", "--from-dead-letters", "--reason", "the prices are mended")


@pytest.mark.parametrize("way", [by_aws, by_bus])
def test_who_brings_back_the_dead_letters_does_not_wake_what_was_discarded(world, way):
    world.send(*orders([666, 1666]))
    world.deliver()
    world.bus_says("discard", "events", "--id", "1", "--reason", "a test order")
    mended(world)
    way(world)
    world.deliver()
    assert world.states() == {"delivered": 1, "discarded": 1}
    assert world.told("account", "events")["duplicates"] == 1
    world.bus_says("redrive", "events", "--all", "--reason", "all that waits")
    assert world.states() == {"delivered": 1, "discarded": 1}
    assert world.told("redrive", "events", "--id", "1", "--reason", "no test")["redriven"] == 1
    world.deliver()
    assert world.logged() == ["O-1666", "O-666"]


def test_a_message_that_is_discarded_before_its_copy_is_sent_gets_none(world):
    world.send(order(666))
    world.dead.fail(*[Transient("throttled")] * 50)
    with pytest.raises(Transient):
        world.deliver()
    world.dead._failures.clear()
    world.bus_says("discard", "events", "--all", "--reason", "a test order")
    world.deliver()
    assert (world.dead.depth().waiting, world.states()) == (0, {"discarded": 1})


def test_behind_a_discarded_message_its_group_rides_on(tmp_path, monkeypatch, capsys):
    world = CliWorld(tmp_path, monkeypatch, capsys, fifo=True)
    world.send(*orders([666, 1, 2]), group="a")
    world.deliver()
    assert world.states() == {"stranded": 1, "waiting": 2}
    assert "`bus discard events --id 1 --reason …`: the group alone" in world.bus_says("doctor")[1]
    world.bus_says("discard", "events", "--id", "1", "--reason", "a test order")
    world.deliver()
    assert (world.logged(), world.states()) == (["O-1", "O-2"], {"delivered": 2, "discarded": 1})


def test_rows_of_a_discarded_message_wait_for_nobody(world):
    world.send(order(1), {"order_id": "X", "qty": 0, "price": "1"})
    world.deliver()
    assert "`bus discard` gives it up" in world.refused("quarantine", "release", "--route", "events", "--stop", "messages", "1")
    assert "or `bus discard`" in world.bus_says("quarantine", "show", "1")[1]
    world.bus_says("discard", "events", "--state", "quarantined", "--reason", "no order at all")
    assert world.told("quarantine", "list") == []
    (row,) = world.told("quarantine", "list", "--state", "all")
    assert (row["state"], row["reason"], row["releasable"]) == ("discarded", "message discarded: no order at all", False)
    assert "not held in quarantine" in world.refused("quarantine", "release", "--route", "events", "--stop", "messages", "1")
    assert world.told("account", world.messages()[0].trip)["messages"] == {"delivered": 1, "discarded": 1}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--id", "1"), "message 1 of route 'events' cannot be discarded: it is delivered: its rows are in the destination"),
        (("--id", "4", "--id", "99"), "1 of the 2 messages (99) are not stranded or quarantined or held messages of route 'events'"),
        (("--state", "delivered"), "'delivered' is none of stranded, quarantined, held"),
        (("--state", "discarded"), "'discarded' is none of stranded, quarantined, held"),
        ((), "say which: --id ID …, --state STATE …, --since and --until, or --all"),
        (("--id", "4", "--all"), "say which"),
    ],
)
def test_what_cannot_be_discarded_says_why(unchanged, given, says):
    assert says in unchanged.refused("discard", "events", *given, "--reason", "x")
    assert unchanged.states() == {"delivered": 3, "stranded": 1}


def test_discarding_needs_a_reason_and_a_route_that_is_there(unchanged):
    assert "--reason" in unchanged.refused("discard", "events", "--id", "4")
    assert "discarding messages needs a reason" in unchanged.refused("discard", "events", "--id", "4", "--reason", " ")
    assert "did you mean 'events'?" in unchanged.refused("discard", "evnts", "--id", "4", "--reason", "x")


def test_a_discarded_message_is_purged_like_any_that_has_ended(stranded):
    stranded.bus_says("discard", "events", "--all", "--reason", "a test order")
    aged(stranded, 10)
    (taken,) = stranded.told("purge", "events", "--older-than", "7d")["routes"]
    assert taken["bodies"] == 4
    assert taken["archive_files"] > 0
    assert "that have their bodies" in stranded.refused("redrive", "events", "--id", "4", "--reason", "too late")
    aged(stranded, 40)
    (taken,) = stranded.told("purge", "events", "--older-than", "7d")["routes"]
    assert (taken["messages"], stranded.messages()) == (4, [])
    assert stranded.told("account", "events")["balanced"]


def test_what_a_lost_depot_had_discarded_waits_again(stranded):
    """Nobody else knows of the decision."""
    stranded.bus_says("discard", "events", "--all", "--reason", "a test order")
    stranded.lose_the_depot()
    assert stranded.told("depot", "rebuild")[0]["by_state"] == {"delivered": 3, "waiting": 1}


# Departing


def test_dispatch_does_a_tick_and_drives_what_departs_without_a_daemon(world):
    world.send(*orders([1, 2]))
    code, out, _ = world.bus_says("dispatch", "events", "--wait", "0")
    assert code == 0
    assert out.startswith("boarded 2, departed 1\ntrip ")
    assert out.endswith("(messages: 2): delivered\n")
    assert world.logged() == ["O-1", "O-2"]
    assert world.told("dispatch", "events", "--wait", "0") == {"route": "events", "ticks": ["nothing waits"], "trips": []}


def test_dispatch_until_quiet_finds_the_poison_and_delivers_the_others(world):
    world.send(*orders([1, 666, 2]))
    told = world.told("dispatch", "events", "--until-quiet", "--wait", "0", code=1)
    assert world.logged() == ["O-1", "O-2"]
    assert world.states() == {"delivered": 2, "stranded": 1}
    assert world.dead.depth().waiting == 1
    assert told["ticks"][-1] == "stranded 1"


def test_dispatch_until_quiet_does_not_wait_for_a_rehearsal_that_failed(stranded):
    rehearsal = stranded.bus.depot.start_trip("events", "rehearsal", {}).id
    stranded.bus.depot.finish_trip(rehearsal, "failed", "this run rehearses")
    assert len(stranded.told("dispatch", "events", "--until-quiet", "--wait", "0")["ticks"]) == 1


def test_dispatch_until_quiet_fails_where_it_leaves_something_that_nobody_decided_about(tmp_path, monkeypatch, capsys):
    """A job in CI that goes on after it would go on without these rows."""
    world = CliWorld(tmp_path, monkeypatch, capsys, second=Database(url=f"sqlite:///{tmp_path}/second.db"))
    both = [DropOff(f"log_{name}", Table(name, "log", create=True), of="priced") for name in ("warehouse", "second")]
    world.deploy(events(stops=(events()["priced"], *both), batch=1, max_in_flight=1))
    world.send(order(0))
    world.deliver()
    with closing(sqlite3.connect(tmp_path / "second.db")) as connection:
        connection.execute("CREATE TRIGGER refusing BEFORE INSERT ON log BEGIN SELECT RAISE(ABORT, 'no'); END")
    world.send(*orders(range(1, 10)))
    while departures := world.tick().departures:
        assert {world.run(one) for one in departures} == {"failure"}
    assert world.queue.depth().waiting
    code, out, err = world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")
    assert (code, out.count("trip ")) == (1, 0)
    stuck = len(world.bus.depot.trips("events", "stuck"))
    assert f"not everything is done: {stuck} trips stuck, which are tried again, {stuck} messages aboard or waiting, about" in err
    assert f"about {world.queue.depth().waiting} on the queue" in err
    with closing(sqlite3.connect(tmp_path / "second.db")) as connection:
        connection.execute("DROP TRIGGER refusing")
    world.hurry()
    assert world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")[0] == 0
    assert world.bus_says("pause", "events", "--reason", "moving house")[0] == 0
    assert world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")[0] == 0
    world.send(order(99))
    code, _, err = world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")
    assert code == 1
    assert "not everything is done: the route is paused (moving house), about 1 on the queue; `bus doctor events`" in err


def test_dispatch_until_quiet_waits_for_a_trip_to_fill_as_long_as_its_queue_says(world):
    world.deploy(events(max_wait_seconds=1))
    world.send(order(1))
    assert world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")[0] == 0
    assert world.states() == {"delivered": 1}


def test_dispatch_until_quiet_waits_for_a_trip_to_fill_beside_a_release_that_is_stuck(world):
    """That holds no place of trips of messages."""
    release = world.bus.depot.start_trip("events", "release", {}).id
    world.bus.depot.finish_trip(release, "stuck")
    world.deploy(events(max_wait_seconds=1))
    world.send(order(1))
    assert world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")[0] == 0
    assert world.states() == {"delivered": 1}


@pytest.mark.parametrize("slow", [False, True])
def test_dispatch_until_quiet_fails_where_a_body_stays_in_its_bucket(world, monkeypatch, slow):
    """Its message is hidden for a while: the next tick finds nothing, and it is not done."""

    def fetch(pointer: Pointer) -> bytes:
        if slow:
            raise TimeoutError
        raise Transient("the bucket is down")

    real = world.queue.fetch
    monkeypatch.setattr(world.queue, "fetch", fetch)
    world.send(order(1))
    said = ["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": "b", "s3Key": "one"}]
    world.queue.send([Outgoing(json.dumps(said), {"ExtendedPayloadSize": "9"})])
    code, _, err = world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")
    assert (code, world.states()) == (1, {"delivered": 1})
    assert "not everything is done: bodies were not fetched, about 1 on the queue; `bus doctor events`" in err
    monkeypatch.setattr(world.queue, "fetch", real)
    world.queue.large_bodies[Pointer("b", "one")] = json.dumps(order(2)).encode()
    world.queue.expire()
    assert world.bus_says("dispatch", "events", "--until-quiet", "--wait", "0")[0] == 0
    assert world.logged() == ["O-1", "O-2"]


def test_dispatch_of_a_route_without_a_queue_says_how_to_drive_it(world):
    world.deploy(_files())
    assert "route 'files' has no queue; `bus drive files` drives it" in world.refused("dispatch", "files")


def test_a_paused_route_keeps_its_messages_on_their_queue(world):
    assert "paused since" in world.bus_says("pause", "events", "--reason", "moving house")[1]
    world.send(order(1))
    assert "paused since" in world.told("dispatch", "events", "--until-quiet", "--wait", "0", code=1)["ticks"][0]
    assert world.queue.depth().waiting == 1
    _, out, err = world.bus_says("pause", "events", "--reason", "another")
    assert "moving house" in out
    assert "the first reason stands" in err
    assert "events: no messages, PAUSED since" in world.bus_says("messages")[1]
    assert world.told("resume", "events")["reason"] == "moving house"
    assert "was not paused" in world.bus_says("resume", "events")[1]
    world.deliver()
    assert world.logged() == ["O-1"]


def test_dispatch_by_hand_does_not_wait_for_a_paused_route(world, monkeypatch):
    world.bus_says("pause", "events", "--reason", "moving house")
    monkeypatch.setattr("sensors.dispatch.time.sleep", pytest.fail)
    for more in ([], ["--until-quiet"]):
        assert "moving house" in world.told("dispatch", "events", "--wait", "20", *more)["ticks"][0]


def test_a_route_whose_module_does_not_load_can_be_paused_all_the_same(stranded, monkeypatch):
    monkeypatch.setenv("BUS_MODULE", "no_such_module_anywhere")
    assert stranded.bus_says("pause", "events", "--reason", "a bad deploy")[0] == 0
    assert stranded.bus.depot.inbox.paused("events")[1] == "a bad deploy"


def test_a_cancelled_trip_strands_its_messages_which_can_be_redriven(world):
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures
    assert "bus redrive events" in world.bus_says("cancel", departure.trip, "--reason", "not today")[1]
    assert world.states() == {"stranded": 2}
    assert world.run(departure) == "nothing to do"
    assert world.logged() == []
    assert world.told("cancel", departure.trip, "--reason", "again")["cancelled"] == "not today"
    world.bus_says("redrive", "events", "--all", "--reason", "today")
    world.deliver()
    assert world.logged() == ["O-1", "O-2"]
    assert "there is nothing left to cancel" in world.refused("cancel", world.messages()[0].trip, "--reason", "too late")


def test_a_trip_that_is_driven_is_asked_to_stop(world):
    world.send(order(1))
    (departure,) = world.tick().departures
    world.bus.depot.claim(departure.trip, "somebody", lease_seconds=60)
    told = world.told("cancel", departure.trip, "--reason", "not today")
    assert told == {"trip": departure.trip, "state": "driving", "cancelled": "not today"}
    world.bus.depot.finish_trip(departure.trip, "failed", "somebody stopped")
    assert "it was asked to stop, and ends as cancelled with the next tick" in world.bus_says("trip", departure.trip)[2]


def test_a_trip_without_messages_that_is_committed_somewhere_is_told_to_roll_forward(world, monkeypatch):
    """And one whose route the module has no more stays as it is."""
    route = of_two_databases(world)
    trip = committed_unheard_long_ago(world, route, monkeypatch)
    world.deploy(events())
    said = world.refused("cancel", trip, "--reason", "not today")
    assert "has no route 'files'" in said
    assert f"nobody knows where to ask whether trip {trip} is committed, so it is not cancelled" in said
    found = world.bus.depot.trip(trip)
    assert (found.state, found.cancelled) == ("failed", None)
    world.deploy(route)
    assert f"only rolls forward, with `bus drive files --trip {trip}`" in world.refused("cancel", trip, "--reason", "not today")
    assert world.bus.depot.trip(trip).state == "stuck"


# Accounts


def test_the_account_of_a_route_sums_up_and_is_recounted(stranded):
    stranded.queue.duplicate("m-1")
    stranded.deliver()
    told = stranded.told("account", "events")
    assert (told["received"], told["duplicates"], told["balanced"]) == (4, 1, True)
    assert {line["status"] for line in told["recounts"]} == {"agrees"}
    assert told["on_queues"]["dead"].startswith("about 1 waiting")
    out = stranded.bus_says("account", "events")[1]
    assert "4 = 0 waiting + 0 aboard + 3 delivered + 0 quarantined + 1 stranded + 0 superseded + 0 held + 0 discarded" in out
    assert "✓ the account balances, and the recount agrees" in out
    assert stranded.told("account", "events", "--no-recount")["recounts"] == []


@pytest.mark.parametrize(
    ("sabotage", "what"),
    [
        ("DELETE FROM depot_messages WHERE id = 1", "archived"),
        ("UPDATE depot_messages SET key = 'made up' WHERE id = 4", "received"),
        ("UPDATE depot_messages SET state = 'delivered' WHERE id = 4", "delivered"),
        ("UPDATE depot_messages SET state = 'stranded' WHERE id = 1", "given up, yet applied"),
        ("UPDATE depot_messages SET state = 'discarded' WHERE id = 1", "given up, yet applied"),
        ("UPDATE depot_routes SET delivered = delivered + 1", "in the depot"),
        ("DELETE FROM depot_messages WHERE id = 4", "archived"),
    ],
)
def test_the_account_of_a_route_notices(stranded, sabotage, what):
    stranded.sql(sabotage)
    told = stranded.told("account", "events", code=1)
    wrong = [line for line in told["recounts"] if line["status"] == "differs"]
    assert what in [line["what"] for line in wrong]
    assert all(line["note"] for line in wrong)


@pytest.mark.parametrize("end", ["quarantined", "discarded"])
def test_what_was_delivered_before_it_was_given_up_is_told_by_the_account(world, end):
    world.deploy(events(identity="order_id", attempts=1))
    world.send(*orders([1, 2, 3]))
    world.deliver()
    strict = replace(ORDER, fields=(*ORDER.fields[:1], replace(ORDER["qty"], minimum=3), *ORDER.fields[2:]))
    world.deploy(events(decode=Json(strict), identity="order_id", attempts=1))
    for number in ("1", "2"):
        world.bus_says("replay", "events", "--id", number, "--again", "--reason", "x")
        world.deliver()
    if end == "discarded":
        world.bus_says("discard", "events", "--all", "--reason", "a test")
    told = world.told("account", "events")
    assert (told["by_state"]["delivered"], told["by_state"][end], told["balanced"]) == (1, 2, True)
    (line,) = [line for line in told["recounts"] if line["what"] == "given up, yet applied"]
    assert (line["found"], line["status"]) == (0, "agrees")
    assert line["note"] == "left out: 2 delivered before they were sent round once more; those rows stand"
    world.send(order(1, qty=5))
    world.deliver()
    (line,) = [line for line in world.told("account", "events")["recounts"] if line["what"] == "given up, yet applied"]
    assert line["note"].startswith(f"left out: {2 if end == 'discarded' else 1} delivered before")


def test_a_message_that_is_lost_from_the_depot_is_missed_even_without_a_recount(stranded):
    stranded.sql("DELETE FROM depot_messages WHERE id = 4")
    told = stranded.told("account", "events", "--no-recount", code=1)
    assert (told["received"], sum(told["by_state"].values()), told["balanced"]) == (4, 3, False)
    code, out, _ = stranded.bus_says("account", "events", "--no-recount")
    assert code == 1
    assert "✗ 4 were received, but 3 are in a state" in out
    assert "✗ the account does not balance" in out


def test_the_account_of_a_route_holds_while_its_queue_cannot_be_asked(stranded):
    stranded.queue.fail(Transient("throttled"))
    assert "not known: throttled" in stranded.told("account", "events")["on_queues"]["order_events"]


def test_the_account_of_a_trip_shows_its_messages_and_reads_their_bodies_again(world):
    bad = {"order_id": "X", "qty": 0, "price": "1"}
    world.deploy(events(decode=Json(ORDER, records="orders")))
    world.send({"orders": orders(range(3))}, "nonsense", {"orders": [bad]}, {"orders": "none"})
    world.deliver()
    trip = world.messages("delivered")[0].trip
    told = world.told("account", trip)
    assert told["messages"] == {"delivered": 1, "quarantined": 2}
    (picked_up,) = [line for line in told["recounts"] if line["what"] == "picked up"]
    assert (picked_up["expected"], picked_up["found"], picked_up["status"]) == (5, 5, "agrees")
    assert "messages: 1 delivered, 2 quarantined" in world.bus_says("account", trip)[1]


def test_a_trip_whose_messages_ride_elsewhere_is_not_recounted_as_if_rows_were_lost(stranded):
    trip = stranded.messages()[0].trip
    stranded.bus_says("replay", "events", "--id", "1", "--again", "--reason", "x")
    stranded.deliver()
    told = stranded.told("account", trip, code=0)
    (picked_up,) = [line for line in told["recounts"] if line["what"] == "picked up"]
    assert (picked_up["status"], picked_up["found"]) == ("not counted", None)
    assert "ride elsewhere" in picked_up["note"]


def test_what_messages_name_is_read_again_message_by_message(world):
    named = PickUp("lines", TextFile("landing", "{message.file}"), Contract((Field("sku", required=True),)))
    drop = DropOff("log", Table("warehouse", "log", create=True), of="lines")
    world.deploy(events(decode=Json(Contract((Field("file", required=True),))), stops=(named, drop)))
    world.land("sku\na\nb\n", "one.csv")
    world.land("sku\nc\n", "two.csv")
    world.send({"file": "one.csv"}, {"file": "two.csv"})
    world.deliver()
    trip = world.messages()[0].trip
    lines = {line["stop"]: line for line in world.told("account", trip)["recounts"] if line["what"] == "picked up"}
    assert (lines["lines"]["expected"], lines["lines"]["found"], lines["lines"]["status"]) == (3, 3, "agrees")
    world.land("sku\nc\nd\n", "two.csv")
    assert "differs" in {line["status"] for line in world.told("account", trip, code=1)["recounts"]}
    (world.root / "landing" / "two.csv").unlink()
    lines = {line["stop"]: line for line in world.told("account", trip)["recounts"] if line["what"] == "picked up"}
    assert lines["lines"]["status"] == "not counted"


def test_the_account_of_a_release_is_told_though_its_rows_ride_without_their_messages(world):
    """Released at a stop after ``messages``, which changes the grain: nothing was picked up, and no rows came in."""

    def route(minimum):
        contract = Contract((Field("order_id", required=True), Field("qty", "integer", minimum=minimum)), max_rejected=0.9)
        lines = Transform("lines", "SELECT order_id, qty FROM messages", contract, grain="changed", combine="alone")
        return events(decode=Json(ORDER, records="orders"), stops=(lines, DropOff("log", Table("warehouse", "log", create=True))))

    world.deploy(route(2))
    world.send({"orders": [order(1), order(2, qty=2)]})
    world.deliver()
    world.deploy(route(1))
    code, out, _ = world.bus_says("quarantine", "release", "--route", "events", "--stop", "lines", "--all")
    assert (code, world.logged()) == (0, ["O-1", "O-2"])
    assert "the account balances" in out
    trip = world.bus.depot.trips("events", limit=1)[0].id
    picked_up = {line["stop"]: line for line in world.told("account", trip)["recounts"] if line["what"] == "picked up"}
    assert (picked_up["messages"]["found"], picked_up["lines"]["found"]) == (0, 1)
    assert "the account balances, and the recount agrees" in world.bus_says("account", trip)[1]


def lines_of_orders(minimum, qty="qty", databases=("warehouse",)):
    """A message of many orders, of which those with too small a ``qty`` are held, and can be released once ``minimum`` is lower."""
    contract = Contract((Field("order_id", required=True), Field("qty", "integer", minimum=minimum)), max_rejected=0.9)
    lines = Transform("lines", f"SELECT order_id, {qty} AS qty FROM messages", contract)
    drops = [DropOff(f"log_{name}", Table(name, "log", create=True), of="lines") for name in databases]
    return events(decode=Json(contract, records="orders"), identity="id", stops=(lines, *drops))


def failed_release(world):
    """Of the first of two orders in one message; the route is mended by now."""
    world.deploy(lines_of_orders(2))
    world.send({"id": 1, "orders": [order(1), order(2, qty=2)]})
    world.deliver()
    world.deploy(lines_of_orders(1, "CASE WHEN qty = 1 THEN error('boom') ELSE qty END"))
    assert world.bus_says("quarantine", "release", "--route", "events", "--stop", "messages", "--all")[0] == 1
    world.deploy(lines_of_orders(1))
    (release,) = world.bus.depot.trips("events", "failed")
    return release


@pytest.mark.parametrize("way_out", ["drive", "unrelease"])
def test_a_message_is_not_delivered_again_while_a_release_has_a_row_of_it(world, way_out):
    """Else the row lands by both: with its message, and when somebody drives the release that failed, as the doctor says."""
    release = failed_release(world)
    said = world.refused("replay", "events", "--id", "1", "--again", "--reason", "all of it")
    assert f"a row of message 1 rides in release trip {release.id}, which is failed" in said
    assert f"`bus drive events --trip {release.id}`" in said
    assert f"`bus quarantine unrelease {release.id}`" in said
    assert world.states() == {"delivered": 1}
    if way_out == "drive":
        assert world.bus_says("drive", "events", "--trip", release.id)[0] == 0
        assert world.logged() == ["O-1", "O-2"]
    else:
        assert world.bus_says("quarantine", "unrelease", release.id)[0] == 0
    assert world.bus_says("replay", "events", "--id", "1", "--again", "--reason", "all of it")[0] == 0
    world.deliver()
    assert world.logged() == {"drive": ["O-1", "O-1", "O-2", "O-2"], "unrelease": ["O-1", "O-2", "O-2"]}[way_out]
    assert world.bus.depot.quarantined(state="held") == []


@pytest.mark.parametrize("stops", [("messages",), ("messages", "lines")])
def test_the_rows_of_a_release_that_was_only_rehearsed_are_held_again(world, stops):
    """Nothing of it is published, and all that names it names this way out."""
    release = failed_release(world)
    selected = [word for stop in stops for word in ("--select", stop)]
    assert world.bus_says("drive", "events", "--trip", release.id, *selected)[0] == 0
    assert world.bus.depot.trip(release.id).state == "rehearsed"
    out = f"`bus quarantine unrelease {release.id}` holds"
    assert out in world.refused("replay", "events", "--id", "1", "--again", "--reason", "all of it")
    [finding] = [found for found in world.told("doctor", "events", code=1) if found["level"] == "wrong"]
    assert "was only rehearsed" in finding["wrong"]
    assert out in finding["advice"]
    assert world.bus_says("quarantine", "unrelease", release.id)[:2] == (0, "1 rows are held again\n")
    assert "is cancelled" in world.bus_says("drive", "events", "--trip", release.id)[2]
    assert world.bus_says("quarantine", "release", "--route", "events", "--stop", "messages", "--all")[0] == 0
    assert world.logged() == ["O-1", "O-2"]


def test_a_release_that_is_stuck_is_only_rolled_forward_and_nobody_names_another_way(tmp_path, monkeypatch, capsys):
    world = CliWorld(tmp_path, monkeypatch, capsys, second=Database(url=f"sqlite:///{tmp_path}/second.db"))
    both = ("warehouse", "second")
    world.deploy(lines_of_orders(2, databases=both))
    world.send({"id": 1, "orders": [order(1), order(2, qty=2)]})
    world.deliver()
    world.deploy(lines_of_orders(1, databases=both))
    with closing(sqlite3.connect(tmp_path / "second.db")) as connection:
        connection.execute("CREATE TRIGGER refusing BEFORE INSERT ON log BEGIN SELECT RAISE(ABORT, 'no'); END")
    code, _, failed = world.bus_says("quarantine", "release", "--route", "events", "--stop", "messages", "--all")
    (release,) = world.bus.depot.trips("events", "stuck")
    again = world.refused("replay", "events", "--id", "1", "--again", "--reason", "all of it")
    assert code == 1
    for said in (failed, again):
        assert f"`bus drive events --trip {release.id}`" in said
        assert "unrelease" not in said
    with closing(sqlite3.connect(tmp_path / "second.db")) as connection:
        connection.execute("DROP TRIGGER refusing")
    assert world.bus_says("drive", "events", "--trip", release.id)[0] == 0
    assert world.bus_says("replay", "events", "--id", "1", "--again", "--reason", "all of it")[0] == 0


def rated(kind, default):
    """Orders times a rate, which is a parameter of ``kind``."""

    def priced(messages, params):
        return messages.assign(total=messages["qty"] * messages["price"] * params["rate"])

    stops = (Transform("priced", priced, TOTAL), DropOff("log", Table("warehouse", "log", create=True), of="priced"))
    return events(parameters=(Parameter("rate", kind, default=default),), batch=1, stops=stops)


def trips_that_wait(world, rate, new):
    """Two that were formed with ``rate``, a text, before ``new`` was deployed."""
    world.deploy(rated("string", rate))
    world.send(order(1), order(2))
    world.tick()
    world.sql("UPDATE depot_trips SET state = 'formed', departed_at = NULL")
    world.deploy(new)
    return [trip.id for trip in world.bus.depot.trips("events")]


@pytest.mark.parametrize("way", ["dispatch", "drive", "sensor"])
def test_a_parameter_whose_type_was_changed_is_read_anew_for_trips_that_waited(world, way):
    trips = trips_that_wait(world, "2", rated("integer", 3))
    if way == "sensor":
        world.deliver()
    else:
        for arguments in [("dispatch", "events")] if way == "dispatch" else [("drive", "events", "--trip", trip) for trip in trips]:
            assert world.bus_says(*arguments)[0] == 0
    assert world.rows("log") == [("O-1", "3.00"), ("O-2", "3.00")]
    assert [world.bus.depot.trip(trip).parameters for trip in trips] == [{"rate": 2}] * 2
    assert world.told("account", trips[0])["balanced"]


@pytest.mark.parametrize("way", ["dispatch", "drive", "sensor"])
def test_a_kept_parameter_that_its_new_type_does_not_take_is_told_and_pauses_the_route(world, way):
    trips = trips_that_wait(world, "two", rated("integer", 3))
    if way == "sensor":
        world.deliver()
    elif way == "drive":
        code, _, said = world.bus_says("drive", "events", "--trip", trips[0])
        assert code == 1
        assert f"parameter 'rate' is an integer by now, and trip {trips[0]} keeps 'two' for it" in said
    else:
        assert world.bus_says("dispatch", "events")[0] == 1
    failed = [trip for trip in world.bus.depot.trips("events") if trip.error]
    assert len(failed) == (1 if way == "drive" else 2)
    assert all(f"parameter 'rate' is an integer by now, and trip {trip.id} keeps 'two' for it" in str(trip.error) for trip in failed)
    world.tick()
    assert "'rate'" in world.bus.depot.inbox.paused("events")[1]
    for trip in trips:
        world.bus_says("cancel", trip, "--reason", "no rate")
    world.bus_says("resume", "events")
    assert world.bus_says("redrive", "events", "--state", "stranded", "--reason", "today's rate")[0] == 0
    world.deliver()
    assert world.rows("log") == [("O-1", "4.50"), ("O-2", "4.50")]


def test_a_trip_that_cannot_be_driven_here_keeps_no_other_of_its_tick_waiting(world, monkeypatch):
    from bus_assets.cli import drive_command

    first, second = sorted(trips_that_wait(world, "2", rated("string", "2")))
    real = drive_command.drive_and_tell

    def drive_and_tell(loaded, route, wish):
        if wish.trip == first:
            raise Refused("not this one")
        return real(loaded, route, wish)

    monkeypatch.setattr(drive_command, "drive_and_tell", drive_and_tell)
    world.deploy(rated("integer", 2))
    code, _, said = world.bus_says("dispatch", "events", "--until-quiet")
    assert code == 1
    assert "not this one" in said
    assert {trip.id: trip.state for trip in world.bus.depot.trips("events")} == {first: "departed", second: "delivered"}


def test_ten_pages_are_counted_as_one(world, monkeypatch):
    monkeypatch.setattr("bus_assets.counted_messages.AT_A_TIME", 2)
    world.send(*orders(range(20)))
    world.deliver()
    assert world.told("account", "events")["balanced"]
    assert world.told("account", world.messages()[0].trip)["messages"] == {"delivered": 20}


# Rebuilding


def test_a_lost_depot_is_rebuilt_and_nothing_is_lost_or_doubled(stranded):
    stranded.send(order(8))
    stranded.tick()  # boarded, gone from the queue, not delivered yet
    stranded.lose_the_depot()
    told = stranded.told("depot", "rebuild")
    assert told == [
        {"route": "events", "archived": 5, "known": 0, "by_state": {"delivered": 3, "waiting": 2}, "corrected": 0, "outdated": []}
    ]
    assert stranded.told("depot", "rebuild")[0]["by_state"] == {}
    assert stranded.logged() == ["O-1", "O-2", "O-3"]
    mended(stranded)
    assert stranded.logged() == ["O-1", "O-2", "O-3", "O-666", "O-8"]
    assert stranded.states() == {"delivered": 5}
    stranded.queue.duplicate("m-1")
    assert "duplicates 1" in stranded.deliver()[0]
    assert stranded.told("account", "events")["balanced"]


def test_a_depot_of_yesterday_is_rebuilt_while_messages_flow(world):
    world.send(*orders([1, 2]))
    world.deliver()
    copy = copy_of_the_depot(world)
    world.send(*orders([3, 4]))
    world.deliver()
    world.send(order(5))
    world.tick()
    restore(world, copy)
    world.send(order(6))
    (departure,) = world.tick().departures
    assert world.told("depot", "rebuild")[0]["by_state"] == {"delivered": 2, "waiting": 1}
    world.run(departure)
    world.deliver()
    assert world.logged() == [f"O-{number}" for number in range(1, 7)]
    assert world.states() == {"delivered": 6}


def test_a_message_delivered_again_can_be_delivered_again_after_a_rebuild(world):
    world.send(order(1))
    world.deliver()
    for time in ("second", "third"):
        world.bus_says("replay", "events", "--id", "1", "--again", "--reason", time)
        world.deliver()
    world.lose_the_depot()
    world.bus_says("depot", "rebuild")
    (message,) = world.messages()
    world.bus_says("replay", "events", "--id", str(message.id), "--again", "--reason", "fourth")
    world.deliver()
    assert world.logged() == ["O-1"] * 4


def copy_of_the_depot(world):
    world.bus.depot.close()
    return shutil.copy(world.root / "depot.db", world.root / "yesterday.db")


def restore(world, copy):
    world.lose_the_depot()
    world.bus.depot.close()
    shutil.copy(copy, world.root / "depot.db")


@pytest.fixture
def corrected(world):
    """An order that was quarantined for its quantity. ``copy``: the depot as it was then. It was sent anew with another one, which is
    aboard, and then with a third, which is a duplicate."""
    world.deploy(events(dead_letters="dead", attempts=1, identity="order_id"))
    world.send(order(1, qty=0))
    world.deliver()
    assert world.states() == {"quarantined": 1}
    world.copy = copy_of_the_depot(world)
    world.send(order(1, qty=2))
    (world.departure,) = world.tick().departures
    world.send(order(1, qty=3))
    assert "duplicates 1, of them with another body 1" in world.tick().said
    return world


def test_a_lost_depot_is_rebuilt_with_the_body_that_it_took_last(corrected):
    corrected.lose_the_depot()
    assert corrected.told("depot", "rebuild")[0]["by_state"] == {"waiting": 1}
    corrected.deliver()
    assert totals(corrected) == [3]
    assert corrected.told("account", "events")["balanced"]


def test_a_message_that_was_corrected_since_yesterday_rides_with_the_body_that_was_taken(corrected):
    restore(corrected, corrected.copy)
    (told,) = [line for line in corrected.told("account", "events", code=1)["recounts"] if line["what"] == "corrected"]
    assert (told["expected"], told["found"], told["status"]) == (1, 0, "differs")
    assert "body:O-1" in told["note"]
    assert "`bus depot rebuild events`" in told["note"]
    told = corrected.told("depot", "rebuild")[0]
    assert (told["known"], told["by_state"], told["corrected"], told["outdated"]) == (1, {}, 1, [])
    assert corrected.told("depot", "rebuild")[0]["corrected"] == 0
    corrected.deliver()
    assert totals(corrected) == [3]
    assert corrected.told("account", "events")["balanced"]


def test_the_newest_correction_is_told_by_the_depots_clock_alone(world):
    """Who took the first one writes files with a name of tomorrow."""
    world.deploy(events(dead_letters="dead", attempts=1, identity="order_id"))
    for quantity in (0, -1):
        world.send(order(1, qty=quantity))
        world.deliver()
    (early,) = (world.root / "staging" / "archive").rglob("*.corrected.jsonl")
    early.rename(early.with_name("7ZZZZZZZZZZZZZZZZZZZZZZZZZ.corrected.jsonl"))
    copy = copy_of_the_depot(world)
    world.send(order(1, qty=2))
    world.tick()
    assert world.told("account", "events")["balanced"]
    restore(world, copy)
    assert world.told("depot", "rebuild")[0]["corrected"] == 1
    world.lose_the_depot()
    world.told("depot", "rebuild")
    world.deliver()
    assert totals(world) == [3]


def test_a_correction_that_the_archive_does_not_have_yet_is_not_taken_back(world, monkeypatch):
    """Whoever took it was killed before it was noted; when it comes again it is, and then a lost depot is rebuilt with it."""
    world.deploy(events(dead_letters="dead", attempts=1, identity="order_id"))
    for quantity in (0, -1):
        world.send(order(1, qty=quantity))
        world.deliver()
    world.send(order(1, qty=2))
    write = world.bus.staging.write

    def killed(path, content):
        if path.endswith(".corrected.jsonl"):
            raise Transient("killed")
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(BusError, match="killed"):
        patch.setattr(world.bus.staging, "write", killed)
        world.tick()
    assert world.states() == {"waiting": 1}
    assert world.told("account", "events")["balanced"]
    assert world.told("depot", "rebuild")[0]["corrected"] == 0
    world.queue.expire()
    assert "duplicates 1" in world.tick().said
    assert "it arrived again with another body" in world.bus_says("message", "1")[1]
    world.lose_the_depot()
    world.told("depot", "rebuild")
    world.deliver()
    assert totals(world) == [3]
    assert world.told("account", "events")["balanced"]


def test_a_correction_that_was_delivered_since_yesterday_is_not_delivered_again(corrected):
    corrected.run(corrected.departure)
    restore(corrected, corrected.copy)
    assert corrected.told("depot", "rebuild")[0]["corrected"] == 1
    corrected.deliver()
    assert totals(corrected) == [3]
    assert corrected.states() == {"delivered": 1}
    assert corrected.told("account", "events")["balanced"]


def test_a_message_that_rides_uncorrected_is_told_and_can_be_corrected_later(corrected):
    restore(corrected, corrected.copy)
    corrected.sql("UPDATE depot_messages SET state = 'waiting'")
    (departure,) = corrected.tick().departures
    err = corrected.bus_says("depot", "rebuild")[2]
    assert "corrected since, but riding or over with an older body: body:O-1;" in err
    corrected.run(departure)
    assert corrected.told("depot", "rebuild")[0]["corrected"] == 1
    corrected.deliver()
    assert totals(corrected) == [3]


def totals(world):
    return [float(row[1]) for row in world.rows("log")]


def test_what_was_archived_and_never_boarded_is_brought_back_too(world):
    def killed(*arguments, **more):
        raise Transient("killed")

    world.send(order(1))
    board, world.bus.depot.inbox.board = world.bus.depot.inbox.board, killed
    with pytest.raises(BusError):
        world.tick()
    world.bus.depot.inbox.board = board
    assert "bus depot rebuild events" in world.bus_says("account", "events")[1]
    assert world.told("depot", "rebuild")[0]["by_state"] == {"waiting": 1}
    world.queue.expire()
    world.deliver()
    assert world.logged() == ["O-1"]


def test_a_message_that_is_in_one_database_of_two_is_rebuilt_to_roll_forward(tmp_path, monkeypatch, capsys):
    def die_before_the_mart(drive, at):
        if at == "mart":
            raise Transient("the mart is away")

    stops = (*MENDED, DropOff("copy", Table("mart", "copy", create=True), of="priced"))
    mart = Database(url=f"sqlite:///{tmp_path}/mart.db")
    world = CliWorld(tmp_path, monkeypatch, capsys, events(dead_letters="dead", stops=stops), mart=mart)
    world.send(*orders([1, 2]))
    world.deliver()
    world.send(order(3))
    (departure,) = world.tick().departures
    world.run(departure, die_before_the_mart)
    world.lose_the_depot()
    assert world.told("depot", "rebuild")[0]["by_state"] == {"delivered": 2, "waiting": 1}
    world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3"]
    with mart.transaction(reading=True) as transaction:
        assert transaction.count_rows("copy") == 3


def test_an_upgrade_makes_a_depot_and_says_at_which_revision_it_is(world):
    world.lose_the_depot()
    assert world.told("depot", "upgrade")["revision"] == "0005"


# Purging


def test_a_purge_takes_what_has_ended_and_keeps_keys_and_what_waits(stranded):
    aged(stranded, 10)
    dry = stranded.told("purge", "--older-than", "7d", "--dry-run")["routes"]
    before = stranded.messages()
    assert stranded.messages() == before
    (taken,) = stranded.told("purge", "events", "--older-than", "7d")["routes"]
    assert [taken] == dry
    assert (taken["bodies"], taken["messages"]) == (3, 0)
    assert taken["staged_files"] > 0
    assert taken["archive_files"] == 0  # the stranded one is in it
    bodies = {message.key: message.body for message in stranded.messages()}
    assert [key for key, body in bodies.items() if body is not None] == ["sqs:m-4"]
    stranded.queue.duplicate("m-1")
    assert "duplicates 1" in stranded.deliver()[0]
    mended(stranded)
    stranded.bus_says("redrive", "events", "--all", "--reason", "x")
    stranded.deliver()
    assert stranded.logged() == ["O-1", "O-2", "O-3", "O-666"]
    assert stranded.told("account", "events")["balanced"]


def test_whole_messages_go_after_a_month_and_their_archive_with_them(world):
    world.send(*orders([1, 2]))
    world.deliver()
    aged(world, 40)
    (taken,) = world.told("purge", "--older-than", "7d")["routes"]
    assert (taken["bodies"], taken["messages"], taken["archive_files"], taken["unknown"]) == (0, 2, 1, 0)
    assert (world.messages(), world.told("trips")) == ([], [])
    assert (taken["forgotten_trips"], taken["quarantined_rows"]) == (1, 0)
    world.send(order(3))
    world.deliver()
    assert world.told("account", "events")["balanced"]


def test_an_archive_that_the_depot_does_not_know_is_not_purged_before_it_is_rebuilt(world):
    world.send(order(1))
    world.tick()
    world.send(order(2))
    world.deliver()
    world.lose_the_depot()
    archive = world.root / "staging" / "archive" / "events"
    (day,) = archive.iterdir()
    day.rename(archive / (datetime.now(UTC) - timedelta(days=40)).date().isoformat())
    world.bus.depot.finish_trip(world.bus.depot.start_trip("events", "person", {}).id, "delivered")
    world.sql("UPDATE depot_trips SET ended_at = '2001-01-01 00:00:00.000000'")
    for _ in range(2):
        (taken,) = world.told("purge", "--older-than", "7d")["routes"]
        assert (taken["archive_files"], taken["unknown"], taken["forgotten_trips"]) == (0, 2, 0)
    assert "`bus depot rebuild events`" in world.bus_says("purge", "--older-than", "7d")[2]
    assert sum(world.told("depot", "rebuild")[0]["by_state"].values()) == 2
    world.deliver()
    assert world.logged() == ["O-1", "O-2"]


def test_a_purge_leaves_trips_that_are_under_way_or_unknown(world):
    def unwell(drive, at):
        if at == "warehouse":
            raise Transient("unwell")

    world.send(order(1))
    (departure,) = world.tick().departures
    world.run(departure, unwell)
    world.tick()  # formed again, its rows staged
    (world.root / "staging" / "events" / "lost" / "1").mkdir(parents=True)
    (world.root / "staging" / "events" / "lost" / "1" / "rows.parquet").touch()
    world.sql("UPDATE depot_trips SET created_at = '2001-01-01 00:00:00.000000'")
    (taken,) = world.told("purge", "--older-than", "7d")["routes"]
    assert (taken["staged_files"], taken["trips"], taken["unknown_trips"]) == (0, 0, 1)
    err = world.bus_says("purge", "--older-than", "7d")[2]
    assert "staged rows of 1 trip stay that the depot does not know: nothing rolls forward from them, as the route has no second" in err
    assert "they can be deleted in the staging area: events/lost\n" in err


def test_a_purge_says_what_rows_of_an_unknown_trip_may_be_needed_for_in_several_databases(world):
    of_two_databases(world)
    for trip in range(7):
        (world.root / "staging" / "files" / f"lost{trip}" / "1").mkdir(parents=True)
        (world.root / "staging" / "files" / f"lost{trip}" / "1" / "rows.parquet").touch()
    err = world.bus_says("purge", "--older-than", "7d")[2]
    assert "committed in 'warehouse' and not in every database rolls forward from them in the depot that knows it only" in err
    assert err.endswith("files/lost4 and 2 more; --json lists them\n")
    assert len(world.told("purge", "--older-than", "7d")["routes"][0]["unknown_folders"]) == 7


def of_two_databases(world):
    """A route of files into two databases."""
    world.bus.systems["second"] = Database(url=f"sqlite:///{world.root}/second.db")
    copy = DropOff("copy", Table("second", "copy", create=True), of="orders")
    world.deploy(Route(name="files", stops=(*_files().stops, copy)))
    (world.root / "landing" / "orders.csv").write_text("order_id,qty,price\nO-1,1,1\n")
    return world.route


def failed_long_ago(world, route, error):
    with pytest.raises(type(error)):
        world.drive(route, before=lambda drive, at: _raised(error) if at == "warehouse" else None)
    return aged_trip(world)


def committed_unheard_long_ago(world, route, monkeypatch):
    with monkeypatch.context() as lost:
        lose_a_reply(lost)
        with pytest.raises(Transient, match="outcome unknown"):
            world.drive(route)
    return aged_trip(world)


def _raised(error):
    raise error


def aged_trip(world):
    world.sql("UPDATE depot_trips SET created_at = '2001-01-01 00:00:00.000000', ended_at = '2001-01-01 00:00:00.000000'")
    trip = world.bus.depot.trips(limit=1)[0]
    assert trip.state == "failed"
    return trip.id


def test_a_purge_leaves_the_rows_by_which_a_failed_trip_rolls_forward(world, monkeypatch):
    """Committed in the first database, and nobody heard of it."""
    route = of_two_databases(world)
    failed, trip = failed_long_ago(world, route, Poison("no good")), committed_unheard_long_ago(world, route, monkeypatch)
    purge = ("purge", "files", "--older-than", "7d")
    (dry,) = world.told(*purge, "--dry-run")["routes"]
    assert world.bus.depot.trip(trip).state == "failed"
    assert world.bus.depot.newest_attempt(failed).ended_at is None
    (taken,) = world.told(*purge)["routes"]
    assert taken == dry
    assert (taken["staged_files"], taken["trips"]) == (1, 1)
    assert taken["needed"] == {
        trip: f"it is committed in 'warehouse' and not in every database; `bus drive files --trip {trip}` rolls it forward from them"
    }
    assert [world.bus.depot.trip(one).state for one in (failed, trip)] == ["failed", "stuck"]
    assert world.bus.depot.newest_attempt(failed).outcome == "revoked"
    world.drive(route, tagged=trip)
    assert world.bus.depot.trip(trip).state == "delivered"
    with sqlite3.connect(world.root / "second.db") as connection:
        assert connection.execute("SELECT count(*) FROM copy").fetchone() == (1,)


def test_a_purge_leaves_the_rows_of_failed_trips_while_their_database_does_not_answer(world, monkeypatch):
    of_two_databases(world)
    depot, asked = world.bus.depot, []
    trips = [depot.finish_trip(depot.start_trip("files", "cron", {}).id, "failed", "no good").id for _ in range(7)]
    for trip in trips:
        (world.root / "staging" / "files" / trip / "1").mkdir(parents=True)
        (world.root / "staging" / "files" / trip / "1" / "rows.parquet").touch()
    aged_trip(world)

    def is_down(database, tables):
        asked.append(database)
        raise Transient("no route to host")

    with monkeypatch.context() as down:
        down.setattr(Database, "prepare", is_down)
        _, _, err = world.bus_says("purge", "files", "--older-than", "7d")
        assert (len(asked), err.count("no route to host"), "so do those of 2 more" in err) == (1, 5, True)
        (taken,) = world.told("purge", "files", "--older-than", "7d", "--dry-run")["routes"]
        assert (taken["staged_files"], set(taken["needed"])) == (0, set(trips))
    assert world.told("purge", "files", "--older-than", "7d")["routes"][0]["staged_files"] == 7


def test_a_purge_takes_dagsters_runs_that_are_older(world, monkeypatch):
    from bus_assets.cli.loading import open_instance

    world.send(order(1))
    assert world.bus_says("dispatch", "events", "--wait", "0")[0] == 0
    with open_instance() as instance:
        assert len(instance.get_runs()) == 1
        assert world.told("purge", "--older-than", "1d")["routes"][0]["runs"] == 0
        monkeypatch.setattr(Depot, "now", lambda depot: datetime.now(UTC) + timedelta(days=2))
        assert world.told("purge", "--older-than", "1d", "--dry-run")["routes"][0]["runs"] == 1
        assert len(instance.get_runs()) == 1
        assert world.told("purge", "--older-than", "1d")["routes"][0]["runs"] == 1
        assert instance.get_runs() == []


def _files():
    pick = PickUp("orders", TextFile("landing", "orders.csv"), ORDER)
    return Route(name="files", stops=(pick, DropOff("log", Table("warehouse", "files", create=True))))


def test_what_is_boarded_by_hand_is_counted(world):
    world.bus.depot.inbox.board("events", [Arrival("a", b"{}")])
    assert world.told("messages")["counts"]["events"]["by_state"]["waiting"] == 1
