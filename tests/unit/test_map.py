"""A route drawn from its declaration."""

import re

from bus_assets import Contract, Cron, DropOff, Field, Parameter, PickUp, Query, Queue, Route, S3Event, Table, TextFile, Transform
from bus_assets.mapped import json_map, mermaid_map, text_map


def enriched(orders, customers):
    return orders


ORDERS = Contract((Field("order_id", required=True), Field("customer", references="customers.id")))
route = Route(
    name="orders",
    description="Orders with their customers",
    triggers=(Cron("15 6 * * *", "Europe/Berlin"),),
    parameters=(Parameter("month", "integer", default=3),),
    stops=(
        PickUp("customers", Query("crm", "SELECT id FROM customers", name='the "crm" view'), Contract((Field("id"),))),
        PickUp("orders", TextFile("landing", "orders-{params.month}.csv"), ORDERS),
        Transform("enriched", enriched, ORDERS, after=("orders", "customers")),
        Transform("daily", "SELECT count(*) AS n FROM enriched", Contract((Field("n", "integer"),)), grain="changed"),
        DropOff("log", Table("warehouse", "log", key="order_id"), of="enriched", where="customer <> '1'"),
        DropOff("days", Table("warehouse", "days"), of="daily"),
    ),
)


def test_the_tree_shows_what_rows_go_on_to_and_what_is_only_looked_up():
    lines = text_map(route).splitlines()
    assert lines[0] == "orders: Orders with their customers"
    assert lines[1] == "triggers: cron 15 6 * * * (Europe/Berlin), person"
    assert lines[2] == "parameters: month (integer, default 3)"
    assert lines[4].startswith('customers · pick-up · Query the "crm" view on crm · 1 field, 1 rule')
    assert lines[5] == "orders · pick-up · TextFile orders-{params.month}.csv on landing · 2 fields, 4 rules ⋯ looks up customers"
    assert lines[6] == "└─ enriched · transform · enriched() · grain kept · 2 fields, 4 rules ⋯ looks up customers"
    assert lines[7] == "   ├─ daily · transform · SQL · grain changed · 1 field, 1 rule"
    assert lines[8] == "   │  └─ days · drop-off · warehouse: days (append) · 1 columns"
    assert lines[9] == "   └─ log · drop-off · warehouse: log (upsert by order_id) · 2 columns · where customer <> '1'"


def test_every_stop_is_drawn_once_in_the_tree():
    drawn = re.findall(r"^[ │├└─]*(\w+) ·", text_map(route), re.MULTILINE)
    assert sorted(drawn) == sorted(stop.name for stop in route.stops)


def test_mermaid_carries_rows_by_solid_arrows_and_looks_up_by_dotted_ones():
    lines = [line.strip() for line in mermaid_map(route).splitlines()]
    assert lines[0] == "flowchart LR"
    assert "stop_orders --> stop_enriched" in lines
    assert "stop_customers -.-> stop_enriched" in lines
    assert "stop_customers -.-> stop_orders" in lines
    assert "stop_orders_source --> stop_orders" in lines
    assert "stop_enriched --> stop_log" in lines


def test_mermaid_labels_cannot_break_out_of_their_quotes():
    for line in mermaid_map(route).splitlines():
        for label in re.findall(r'"(.*)"', line):
            assert '"' not in label
    assert "the #quot;crm#quot; view" in mermaid_map(route)


def test_the_json_map_has_every_stop_in_driving_order():
    made = json_map(route)
    assert [stop["stop"] for stop in made["stops"]] == list(route.order)
    assert made["databases"] == ["warehouse"]
    log = next(stop for stop in made["stops"] if stop["stop"] == "log")
    assert (log["kind"], log["after"], log["mode"], log["key"]) == ("drop-off", ["enriched"], "upsert", ["order_id"])


def test_what_is_read_for_each_message_hangs_below_the_messages():
    files = Contract((Field("order_id", required=True), Field("at", "timestamptz"), Field("sku", references="articles.sku")))
    by_message = Route(
        name="files",
        triggers=(Queue("landed", S3Event()),),
        stops=(
            PickUp("articles", Query("crm", "SELECT sku FROM articles"), Contract((Field("sku"),))),
            PickUp("orders", TextFile("landing", "{message.key}"), files),
            DropOff("log", Table("warehouse", "log", key="order_id", newest="at"), of="orders"),
        ),
    )
    assert "messages · pick-up · messages of queue landed as S3Event · " in text_map(by_message)
    tree = [line.split(" · ")[0] for line in text_map(by_message).splitlines()[3:]]
    assert tree == ["messages", "└─ orders", "   └─ log", "articles"]
    assert "(upsert by order_id, the newest at)" in text_map(by_message)
    edges = [line.strip() for line in mermaid_map(by_message).splitlines() if "--" in line or "-.-" in line]
    assert "stop_messages --> stop_orders" in edges
    assert not [edge for edge in edges if "stop_messages" in edge and "articles" in edge]
