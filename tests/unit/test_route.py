"""A route that constructs can be built; one that cannot says what is wrong, where, and what to do."""

import runpy
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from bus_assets import (
    Check,
    Contract,
    Cron,
    DropOff,
    Endpoint,
    Field,
    Json,
    JsonLines,
    Misdeclared,
    Parameter,
    PickUp,
    Query,
    Queue,
    Route,
    Table,
    TableKey,
    Text,
    TextFile,
    Transform,
    XmlFeed,
)

ORDERS = Contract((Field("order_id", unique=True, required=True), Field("qty", "integer"), Field("sku")))
EVENTS = Contract((Field("id"), Field("at", "timestamp"), Field("group")))
FILE = TextFile("landing", "orders.csv")


def orders(name="orders", **more):
    return PickUp(name, FILE, ORDERS, **more)


def same(frame):
    return frame


def route(*stops, **more):
    return Route("shop", stops, **more)


def test_a_whole_route_constructs_and_knows_its_order():
    made = route(
        orders(),
        Transform("priced", same, ORDERS),
        DropOff("warehouse", Table("dwh", "orders", key="order_id")),
        PickUp("late", FILE, ORDERS),
        DropOff("also", Table("other", "orders"), of="priced"),
    )
    assert made.order.index("orders") < made.order.index("priced") < made.order.index("warehouse")
    assert made.upstream("warehouse") == ("priced",)
    assert made.databases == ("dwh", "other")
    assert made.systems == ("landing", "dwh", "other")


def test_a_route_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        route(orders()).name = "other"  # type: ignore[misc]


def test_drop_off_skips_drop_offs_to_find_its_rows():
    made = route(orders(), DropOff("a", Table("dwh", "a")), DropOff("b", Table("dwh", "b")))
    assert made.upstream("b") == ("orders",)


def test_references_order_stops_without_being_inputs():
    lines = Contract((Field("sku", references="skus.sku"),))
    made = route(PickUp("lines", FILE, lines), PickUp("skus", FILE, ORDERS))
    assert made.order == ("skus", "lines")
    assert made.upstream("lines") == ()


NOTE = Contract((Field("body"), Field("at")))
SUMS = Contract((Field("sku"), Field("qty", "integer")))
GROUPED = "SELECT sku, CAST(sum(qty) AS BIGINT) AS qty FROM messages GROUP BY sku"


def queue(decode=None, system="q", **more):
    return Queue(system, decode or Json(ORDERS), **more)


def started_by_messages(*stops):
    return route(*stops, triggers=(queue(),))


def into(of, **table):
    return DropOff("d", Table("w", "t", **table), of=of)


def test_the_limits_of_a_queue_are_within_them():
    for number, wait in ((1, 0), (100, 900)):
        made = queue(batch=number, max_in_flight=number, attempts=number, max_wait_seconds=wait)
        assert (made.batch, made.max_in_flight, made.attempts, made.max_wait_seconds) == (number, number, number, wait)
    for identity in ("id", "order.event id", "@deduplication_id"):
        assert queue(identity=identity).identity == identity
    assert queue(Text(), identity="@deduplication_id", dead_letters="dead").systems == ("q", "dead")


SKUS = PickUp("skus", TextFile("landing", "skus.csv"), ORDERS)
NAMED = PickUp("named", TextFile("landing", "{message.sku}.csv"), ORDERS)
JOINED = "SELECT s.sku, m.qty FROM skus s LEFT JOIN messages m USING (sku)"


def both(first, second):
    return first


def test_rows_of_messages_may_look_others_up():
    started_by_messages(SKUS, Transform("x", both, ORDERS, after=("messages", "skus")), into("x"))
    started_by_messages(NAMED, SKUS, Transform("x", both, ORDERS, after=("named", "messages")), into("x"))
    started_by_messages(replace(SKUS, contract=replace(ORDERS, min_rows=1)), Transform("x", both, ORDERS, after=("messages", "skus")))
    started_by_messages(SKUS, Transform("y", same, ORDERS, after=("skus",), grain="changed"), into("y", scope={}))
    known = Contract((Field("sku", references="skus.sku"), Field("qty", "integer")))
    started_by_messages(SKUS, Transform("x", GROUPED, known, ("messages",), "changed", "accumulate"))
    started_by_messages(SKUS, replace(NAMED, contract=Contract((Field("sku", references="messages.sku"), *known.fields[1:]))))


def test_a_changed_grain_says_how_batches_combine():
    adds = {"key": "sku", "mode": "accumulate", "sums": ("qty",)}
    started_by_messages(Transform("x", GROUPED, SUMS, grain="changed", combine="accumulate"), into("x", **adds))
    started_by_messages(Transform("x", GROUPED, SUMS, grain="changed", combine="alone"), into("x"))
    other = DropOff("raw", Table("w", "raw"), of="messages")  # not after the transform, so its mode is its own
    started_by_messages(Transform("x", GROUPED, SUMS, grain="changed", combine="accumulate"), into("x", **adds), other)


EVERY = Contract(
    (
        Field("n", "number"),
        Field("i", "integer"),
        Field("b", "boolean"),
        Field("m", "decimal(10,2)"),
        Field("d", "date"),
        Field("t", "time"),
        Field("w", "timestamp"),
        Field("z", "timestamptz"),
        Field("x", "binary"),
        Field("l", "list<integer>"),
        Field("s", "struct<a: string, order: list<date>>"),
    )
)
WHERE = "n > 1 AND b AND m < 0.5 AND d > '2026-01-01' AND t > '10:00' AND w > d AND z > now() AND octet_length(x) > 0 AND len(l) > 0"
AT_NIGHT = "SELECT * FROM every WHERE s.a = '' AND hour(z AT TIME ZONE 'Europe/Berlin') > 22 -- of all"

CUSTOMERS = Contract((Field("id", "integer"), Field("email", sensitive=True), Field("country")))
MAY_HOLD = "may hold values of 'customers.email', which is sensitive, and does not say whether it is; add sensitive=True"


def customers_made(how, *fields, **more):
    """A route whose second stop makes ``fields`` of customers with a sensitive e-mail."""
    return route(PickUp("customers", FILE, CUSTOMERS), Transform("made", how, Contract(fields), **more))


def test_what_is_made_of_a_sensitive_field_says_whether_it_is_one():
    made = customers_made("SELECT email FROM customers", Field("email", sensitive=True))
    assert made["made"].contract.sensitive == {"email"}
    made = customers_made("SELECT count(email) AS n FROM customers", Field("n", "integer", sensitive=False), grain="changed")
    assert made["made"].contract.sensitive == frozenset()
    customers_made(same, Field("email", sensitive=True), Field("country"))


def test_what_no_sensitive_field_flows_into_says_nothing():
    customers_made("SELECT id, country AS email, 'x' AS mark FROM customers", Field("id", "integer"), Field("email"), Field("mark"))
    customers_made("SELECT country, count(*) AS n FROM customers GROUP BY 1", Field("country"), Field("n", "integer"), grain="changed")
    made = customers_made("SELECT email AS mail FROM customers", Field("mail", sensitive=False))
    route(*made.stops, Transform("last", "SELECT mail FROM made", Contract((Field("mail"),))))  # the author has said that it is none


def test_sql_that_runs_is_not_refused():
    every = PickUp("every", FILE, EVERY, checks=(Check("night", AT_NIGHT), Check("file", "SELECT * FROM 'none.csv'")))
    route(every, DropOff("d", Table("w", 'sales."odd.name"'), where=WHERE))


FEES = "FROM (PIVOT orders ON sku USING sum(qty) GROUP BY order_id)"


@pytest.mark.parametrize("how", [f"SELECT * {FEES}", f"SELECT order_id, fee {FEES}", f"WITH p AS (SELECT * {FEES}) SELECT fee FROM p"])
def test_columns_that_come_from_rows_are_not_missed_before_there_are_rows(how):
    free = Check("free", "PIVOT orders ON sku USING sum(qty) GROUP BY order_id")
    none = Check("none", f"SELECT * {FEES} WHERE fee = 0;")
    fees = Contract((Field("order_id"), Field("fee", "integer")))
    route(orders(checks=(free, none)), Transform("fees", how, fees, grain="changed"))


def test_sql_is_tried_on_the_types_in_which_rows_are_staged():
    import duckdb
    import pyarrow as pa

    staged = pa.schema([(field.name, field.parsed_type.arrow()) for field in EVERY.fields]).empty_table()
    columns = ", ".join(f"{field.name} {field.parsed_type.duckdb()}" for field in EVERY.fields)
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE tried ({columns})")
        assert connection.table("tried").types == connection.from_arrow(staged).types


@pytest.mark.parametrize("schedule", ["15 6 * * 1-5", "*/5 0-23/2 1,15 JAN-MAR SUN", "0 5 L * *", "0 5 * * 5#3", "0 0 29 2 *"])
def test_schedules_that_dagster_knows_are_taken(schedule):
    assert Cron(schedule).schedule == schedule


WRONG = {
    "a sensitive field by its name": (
        lambda: customers_made("SELECT email FROM customers", Field("email")),
        f"route 'shop': stop 'made': field 'email' {MAY_HOLD}, or sensitive=False if nothing of the value can be told from it",
    ),
    "a sensitive field by another name": (
        lambda: customers_made("SELECT id, lower(c.Email) AS mail FROM customers c", Field("id", "integer"), Field("mail")),
        f"field 'mail' {MAY_HOLD}",
    ),
    "a sensitive field in a star": (lambda: customers_made("SELECT * FROM customers", *CUSTOMERS.fields[:1], Field("email")), MAY_HOLD),
    "a sensitive field in a whole row": (lambda: customers_made("SELECT to_json(customers) AS j FROM customers", Field("j")), MAY_HOLD),
    "a sensitive field through a function": (lambda: customers_made(same, Field("Email")), f"field 'Email' {MAY_HOLD}"),
    "a sensitive field of what is looked up": (
        lambda: route(
            PickUp("customers", FILE, CUSTOMERS),
            orders(),
            Transform(
                "made",
                "SELECT o.order_id, c.email AS paid_by FROM orders o LEFT JOIN customers c ON c.id = o.qty",
                Contract((Field("order_id"), Field("paid_by"))),
                after=("orders", "customers"),
            ),
        ),
        f"field 'paid_by' {MAY_HOLD}",
    ),
    "a sensitive field two stops on": (
        lambda: route(
            *customers_made("SELECT email AS mail FROM customers", Field("mail", sensitive=True)).stops,
            Transform("last", lambda made: made, Contract((Field("mail"),))),
        ),
        "stop 'last': field 'mail' may hold values of 'made.mail', which is sensitive",
    ),
    "a sensitive field of a message": (
        lambda: route(
            PickUp("lines", Query("db", "SELECT 1", {"sku": "{message.sku}"}), Contract((Field("sku"),))),
            triggers=(queue(Json(Contract((Field("sku", sensitive=True),)))),),
        ),
        "stop 'lines': field 'sku' may hold values of 'messages.sku', which is sensitive",
    ),
    "two stops of one name": (
        lambda: route(orders(), orders()),
        "route 'shop': stop 'orders' appears twice; stop names must be unique in a route",
    ),
    "no pick-up": (lambda: route(), "route 'shop': it has no stops"),
    "unknown stop in after": (
        lambda: route(orders(), Transform("x", same, ORDERS, after=("order",))),
        "'x' comes after 'order', which is not a stop of this route; did you mean 'orders'?",
    ),
    "a reference to no stop": (
        lambda: route(PickUp("orders", TextFile("landing", "o.csv"), Contract((Field("sku", references="skus.sku"),)))),
        "stop 'orders' references 'skus', which is not a stop of this route; stops are orders",
    ),
    "a message without a queue": (
        lambda: route(PickUp("orders", TextFile("landing", "{message.key}"), ORDERS)),
        "and no Queue triggers this route: add triggers=(Queue(…),)",
    ),
    "after a drop-off": (
        lambda: route(orders(), DropOff("d", Table("w", "t")), Transform("x", same, ORDERS, after=("d",))),
        "'d', which is a drop-off",
    ),
    "a cycle": (
        lambda: route(orders(), Transform("a", same, ORDERS, after=("b",)), Transform("b", same, ORDERS, after=("a",))),
        "stops wait for each other in a circle",
    ),
    "first is no pick-up": (lambda: route(Transform("x", same, ORDERS), orders()), "'x' comes first, so there are no rows for it"),
    "unpromised column": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), columns=("order_idd",))),
        "field 'order_idd' is not promised by stop 'orders'; did you mean 'order_id'?",
    ),
    "key not dropped": (
        lambda: route(orders(), DropOff("d", Table("w", "t", key="sku"), columns=("qty",))),
        "key column 'sku' is not among the columns it drops",
    ),
    "platform's column": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), columns={"_bus_row": "sku"})),
        "'_bus_row' begins with '_bus_'",
    ),
    "sum of text": (
        lambda: route(orders(), DropOff("d", Table("w", "t", key="order_id", mode="accumulate", sums=("sku",)))),
        "sums column 'sku' is not a number",
    ),
    "newest not dropped": (
        lambda: route(orders(), DropOff("d", Table("w", "t", key="order_id", newest="at"))),
        "newest column 'at' is not among the columns it drops",
    ),
    "newest by text": (
        lambda: route(orders(), DropOff("d", Table("w", "t", key="order_id", newest="sku"))),
        "newest='sku' is no time or number but string",
    ),
    "newest of an append": (lambda: Table("w", "t", newest="at"), "newest='at' is for mode 'upsert'"),
    "newest in the key": (lambda: Table("w", "t", key=("id", "at"), newest="at"), "a column that is not in the key"),
    "two writers of a table": (
        lambda: route(orders(), DropOff("d", Table("w", "t", key="sku")), DropOff("e", Table("w", "t", key="sku"))),
        "both write table 't'",
    ),
    "unknown reference": (
        lambda: route(orders(), PickUp("x", FILE, Contract((Field("a", references="orders.nope"),)))),
        "references 'orders.nope', but stop 'orders' promises",
    ),
    "reference of another type": (
        lambda: route(orders(), PickUp("x", FILE, Contract((Field("a", references="orders.qty"),)))),
        "'orders.qty' is integer; they must be of one type",
    ),
    "wrong number of arguments": (
        lambda: route(orders(), orders("more"), Transform("x", same, ORDERS, after=("orders", "more"))),
        "its function takes 1 argument(s) (frame), but it comes after 2",
    ),
    "arguments in another order": (
        lambda: route(orders("a"), orders("b"), Transform("x", lambda b, a: a, ORDERS, after=("a", "b"))),
        "its function takes b, a, but after= lists a, b; use the same order",
    ),
    "placeholder nobody fills": (lambda: route(PickUp("x", TextFile("l", "o-{params.month}.csv"), ORDERS)), "{params.month} is not known"),
    "cron sets what is not declared": (
        lambda: route(orders(), triggers=(Cron("0 5 * * *", parameters={"x": 1}),)),
        "sets parameter 'x', which the route does not declare",
    ),
    "cron leaves a parameter open": (
        lambda: route(orders(), triggers=(Cron("0 5 * * *"),), parameters=(Parameter("m"),)),
        "leaves parameter 'm' open",
    ),
    "sql of a stranger": (
        lambda: route(orders(), Transform("x", "SELECT * FROM customers", ORDERS)),
        "stop 'x': its SQL reads 'customers', and no other stop with rows has that name; there are orders",
    ),
    "sql of a stop that is misspelt": (
        lambda: route(orders(), orders("more"), Transform("x", "SELECT * FROM oders", ORDERS), into("x")),
        "its SQL reads 'oders', and no other stop with rows has that name; did you mean 'orders'? There are orders, more",
    ),
    "sql of a stop that is not in after": (
        lambda: route(orders(), orders("more"), Transform("x", "SELECT more.* FROM more JOIN orders USING (sku)", ORDERS)),
        "stop 'x': its SQL reads orders, but it comes after more; add it: after=('more', 'orders')",
    ),
    "sql of a drop-off": (
        lambda: route(orders(), into("orders"), Transform("x", "SELECT * FROM d", ORDERS)),
        "its SQL reads 'd', and no other stop with rows has that name; there are orders",
    ),
    "sql of itself": (
        lambda: route(orders(), Transform("x", "SELECT * FROM x", ORDERS)),
        "its SQL reads 'x', and no other stop with rows has that name; there are orders",
    ),
    "sql that reads files": (lambda: route(orders(), Transform("x", "SELECT * FROM 'secret.csv'", ORDERS)), "SQL reads"),
    "sql that is not understood": (lambda: route(orders(), Transform("x", "SELECT FROM WHERE (", ORDERS)), "its SQL is not understood"),
    "two statements": (lambda: route(orders(), Transform("x", "SELECT 1; SELECT 2", ORDERS)), "exactly one SELECT"),
    "grain kept by a group": (
        lambda: route(orders(), Transform("x", "SELECT sku FROM orders GROUP BY sku", ORDERS)),
        "declare grain='changed'",
    ),
    "a word of Python's": (lambda: Route("import", (orders(),)), "route 'import' is a word of Python's, which Dagster takes for no name"),
    "not a name": (lambda: Route("Shop!", (orders(),)), "route 'Shop!' is not a usable name"),
    "not a source": (lambda: PickUp("x", "orders.csv", ORDERS), "one of your own lacks system, fields, read, recount, address, templates"),
    "fields of nobody": (
        lambda: PickUp("x", TextFile("l", "x", fields={"a": "B"}), ORDERS),
        "fields maps 'a', which the contract does not promise",
    ),
    "a word too many": (lambda: PickUp("x", FILE, ORDERS, contrat=1), "PickUp 'x' has no option 'contrat'; did you mean 'contract'?"),
    "an option of a file": (
        lambda: TextFile("l", "*.csv", delimeter=";"),
        "TextFile '*.csv' has no option 'delimeter'; did you mean 'delimiter'? There are system, path, delimiter, quote, header, columns",
    ),
    "an option of a field": (lambda: Field("a", reqired=True), "Field 'a' has no option 'reqired'; did you mean 'required'? There are"),
    "an option of a table": (lambda: Table("db", "t", kye="id"), "Table 't' has no option 'kye'; did you mean 'key'? There are database, "),
    "an option of a queue": (lambda: queue(batchsize=5), "Queue 'q' has no option 'batchsize'; did you mean 'batch'? There are system, "),
    "an option of nobody": (
        lambda: Endpoint("crm", "/o", colour="red"),
        "Endpoint '/o' has no option 'colour'; there are system, path, records, params, paging, fields",
    ),
    "sql of an unpromised field": (
        lambda: route(orders(), Transform("x", "SELECT order_id, qyt AS qty, sku FROM orders", ORDERS)),
        'Referenced column "qyt" not found in FROM clause! Candidate bindings: "qty"; stop \'orders\' has order_id, qty, sku',
    ),
    "sql without a promised field": (
        lambda: route(orders(), Transform("x", "SELECT order_id, qty FROM orders", ORDERS)),
        "stop 'x': its SQL makes no column sku, which its contract promises; it makes order_id, qty",
    ),
    "sql with columns of its own without a promised field": (
        lambda: route(orders(), Transform("x", f"SELECT * {FEES}".replace("sku", "sku IN ('fee')"), ORDERS, grain="changed")),
        "stop 'x': its SQL makes no column qty, sku, which its contract promises; it makes order_id, fee",
    ),
    "where of an unpromised field": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), where="qyt > 0")),
        "route 'shop': drop-off 'd': where='qyt > 0': it does not run: Binder Error: Referenced column \"qyt\" not found in FROM clause!",
    ),
    "where of a field that is not dropped, misspelt": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), columns=("sku",), where="order = 'x'")),
        "drop-off 'd': where=\"order = 'x'\": it does not run",
    ),
    "where of a field that is called as a word of SQL": (
        lambda: route(PickUp("orders", FILE, EVENTS), DropOff("d", Table("w", "t"), where="at > '2026-01-01'")),
        '; a field that is called as a word of SQL is written in quotes: "at"; it is about one row',
    ),
    "sql of a field that is called as a word of SQL": (
        lambda: route(PickUp("orders", FILE, EVENTS), Transform("x", "SELECT id, group FROM orders", EVENTS)),
        "; a field that is called as a word of SQL is written in quotes: \"group\"; stop 'orders' has",
    ),
    "where that is no condition": (lambda: route(orders(), DropOff("d", Table("w", "t"), where="qty >")), "it does not run: Parser Error"),
    "where that counts": (lambda: route(orders(), DropOff("d", Table("w", "t"), where="count(*) > 1")), "it does not run: Binder Error"),
    "where that names its stop": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), where="orders.qty > 1")),
        "it is about one row of stop 'orders' and knows nothing but its fields: order_id, qty, sku",
    ),
    "where that reads its stop": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), where="qty > (SELECT avg(qty) FROM orders)")),
        "it does not run: Catalog Error: Table with name orders does not exist!",
    ),
    "check of an unpromised field": (
        lambda: route(orders(checks=(Check("free", "SELECT * FROM orders WHERE qyt = 0"),))),
        "route 'shop': stop 'orders': check 'free': it does not run: Binder Error",
    ),
    "check of another stop": (
        lambda: route(orders(), Transform("x", same, ORDERS, checks=(Check("odd", "SELECT * FROM orders"),))),
        "stop 'x': check 'odd': it does not run: Catalog Error: Table with name orders does not exist!",
    ),
    "check that is no select": (
        lambda: route(orders(checks=(Check("c", "DELETE FROM orders"),))),
        "check 'c': it does not run: Parser Error",
    ),
    "column of no name": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), columns={"": "sku"})),
        "drop-off 'd': column: '' has 0 bytes; names have 1 to 63 bytes",
    ),
    "column that Postgres would cut": (
        lambda: route(orders(), DropOff("d", Table("w", "t"), columns={"s" * 64: "sku"})),
        "' has 64 bytes; names have 1 to 63 bytes",
    ),
    "table of no name": (lambda: Table("w", ""), "table name '': expected 'table' or 'schema.table'"),
    "table in too many schemas": (lambda: Table("w", "a.b.c"), "table name 'a.b.c': expected 'table' or 'schema.table'"),
    "table that ends in a dot": (lambda: Table("w", "sales."), "table name 'sales.': expected"),
    "table with a lone quote": (lambda: Table("w", 'sales"orders'), "write a part with a dot or a quote as"),
    "table name that Postgres would cut": (lambda: Table("w", "t" * 64), "has 64 bytes; names have 1 to 63 bytes"),
    "key in a table of no name": (lambda: TableKey("w", "a.b.c", "id"), "table name 'a.b.c': expected"),
    "key in a column of no name": (lambda: TableKey("w", "t", ""), "TableKey of 't': column: '' has 0 bytes"),
    "paging of an unknown kind": (
        lambda: Endpoint("crm", "/orders", paging={"kind": "pages"}),
        "Endpoint '/orders': paging kind 'pages' is not known; known are none, link_header",
    ),
    "paging with a word too many": (lambda: Endpoint("crm", "/o", paging={"kind": "page", "size": 5}), "paging 'page' has no key 'size'"),
    "paging without its limit": (lambda: Endpoint("crm", "/o", paging={"kind": "offset"}), "paging 'offset' needs 'limit'"),
    "list within an XML path": (
        lambda: XmlFeed("l", "o.xml", "order", fields={"a": "tag[]/x[]"}),
        "XmlFeed 'o.xml': field path 'tag[]/x[]': [] stands once, behind the element that is repeated",
    ),
    "XML path that is none": (lambda: XmlFeed("l", "o.xml", "order", fields={"a": "//x"}), "'' is not the name of an element or attribute"),
    "XML path with a condition": (lambda: XmlFeed("l", "o.xml", "order[1]"), "'order[1]' is not the name of an element or attribute"),
    "XML prefix of nobody": (lambda: XmlFeed("l", "o.xml", "n:order"), "prefix 'n' in 'n:order' is not declared; add it to namespaces="),
    "delimiter beyond ASCII": (lambda: TextFile("l", "x", delimiter="§"), "TextFile 'x': delimiter '§' must be one character of ASCII"),
    "delimiter NUL": (lambda: TextFile("l", "x", delimiter="\0"), "delimiter '\\x00' must be one character of ASCII"),
    "quote beyond ASCII": (lambda: TextFile("l", "x", quote="«"), "quote '«' must be one character of ASCII, or '' for none"),
    "quote that ends a line": (lambda: TextFile("l", "x", quote="\n"), "quote '\\n' must be one character of ASCII"),
    "null of two lines": (lambda: TextFile("l", "x", null_values=("a\nb",)), "null_values may not contain line breaks"),
    "records of no length": (lambda: TextFile("l", "x", longest_record_bytes=0), "longest_record_bytes is 0; it must be 1 to"),
    "records beyond Arrow": (lambda: TextFile("l", "x", longest_record_bytes=1 << 31), "it must be 1 to 1073741824"),
    "no encoding of text": (lambda: JsonLines("l", "x", encoding="base64"), "JsonLines 'x': encoding 'base64' is not known"),
    "cron of no hour": (lambda: Cron("99 99 * * *"), "Cron '99 99 * * *' never comes: "),
    "cron of no day": (lambda: Cron("0 5 30 2 *"), "Cron '0 5 30 2 *' never comes: "),
    "cron of no name": (lambda: Cron("0 5 * * MOX"), "Cron '0 5 * * MOX' never comes: "),
    "cron of the nearest weekday": (lambda: Cron("0 5 15W * *"), "W, the nearest weekday, is not known to Dagster"),
    "delimiter of two": (lambda: TextFile("l", "x", delimiter="||"), "delimiter '||' must be one character"),
    "no header, no columns": (lambda: TextFile("l", "x", header=False), "columns=(…) must name the columns"),
    "unknown encoding": (lambda: TextFile("l", "x", encoding="utf-9"), "encoding 'utf-9' is not known"),
    "placeholder in sql": (lambda: Query("db", "SELECT * FROM t WHERE m = {params.m}"), "write :month there"),
    "upsert without key": (lambda: Table("w", "t", mode="upsert"), "mode 'upsert' needs key="),
    "replace without scope": (lambda: Table("w", "t", mode="replace"), "needs scope={…}"),
    "check with a taken name": (lambda: Check("contract", "SELECT 1"), "that name is taken"),
    "cron of six": (lambda: Cron("0 0 5 * * *"), "five fields are needed"),
    "no such zone": (lambda: Cron("0 5 * * *", zone="Mars/Base"), "is not an IANA time zone"),
    "parameter of another type": (lambda: Parameter("m", "integer", default="x"), "parameter 'm': 'x' does not read as integer"),
    "unknown type": (
        lambda: Field("a", "int"),
        "field 'a': type 'int' is not known; did you mean 'integer'? There are string, integer, number, boolean, date, time, timestamp, ",
    ),
    "type in a list": (lambda: Field("a", "list<flaot>"), "type 'flaot' is not known; there are string, "),
    "class of Python's": (lambda: Field("a", int), "Field 'a': type is Python's class int; write 'integer'"),  # pyright: ignore
    "class that has no type": (lambda: Field("a", object()), "Field 'a': type: input should be a valid string"),  # pyright: ignore
    "mode of SQL's": (
        lambda: Table("w", "t", mode="insert"),  # pyright: ignore
        "Table 't': mode 'insert' is not known; did you mean 'append'? There are append, upsert, replace, delete, accumulate",
    ),
    "mode misspelt": (lambda: Table("w", "t", mode="Replce"), "mode 'Replce' is not known; did you mean 'replace'?"),  # pyright: ignore
    "parameter of Python's": (
        lambda: Parameter("m", "int"),  # pyright: ignore
        "Parameter 'm': type 'int' is not known; did you mean 'integer'? There are string, integer, number, boolean",
    ),
    "decimal without digits": (lambda: Field("a", "decimal"), "decimal needs digits and scale"),
    "type ends early": (lambda: Field("a", "list<"), "ends too early"),
    "pattern on a number": (lambda: Field("a", "integer", pattern="x"), "pattern needs type string"),
    "broken pattern": (lambda: Field("a", pattern="("), "is not a regular expression"),
    "pattern RE2 has not": (lambda: Field("a", pattern="(?=x)"), "which RE2 does not have"),
    "minimum above maximum": (lambda: Field("a", "integer", minimum=3, maximum=1), "minimum 3 exceeds maximum 1"),
    "minimum of another type": (lambda: Field("a", "date", minimum="2020-13-01"), "minimum value '2020-13-01' does not read as date"),
    "nothing allowed": (lambda: Field("a", allowed=()), "so no value could ever pass"),
    "zone of a date": (lambda: Field("a", "date", zone="Europe/Berlin"), "zone is for type timestamptz"),
    "reference without a field": (lambda: Field("a", references="orders"), "is not of the form 'stop.field'"),
    "field twice": (lambda: Contract((Field("a"), Field("A"))), "field 'A' appears twice"),
    "key of nobody": (lambda: Contract((Field("a"),), unique=(("b",),)), "names 'b', which is not a field"),
    "queue of no name": (lambda: queue(system="Order events!"), "queue 'Order events!' is not a usable name"),
    "empty batches": (lambda: queue(batch=0), "Queue 'q': batch is 0; it must be 1 to 100000"),
    "batches beyond memory": (lambda: queue(batch=100_001), "batch is 100001; it must be 1 to 100000"),
    "nothing in flight": (lambda: queue(max_in_flight=0), "max_in_flight is 0; it must be 1 to 1000"),
    "too much in flight": (lambda: queue(max_in_flight=1001), "max_in_flight is 1001; it must be 1 to 1000"),
    "no attempt": (lambda: queue(attempts=0), "attempts is 0; it must be 1 to 100"),
    "attempts without end": (lambda: queue(attempts=101), "attempts is 101; it must be 1 to 100"),
    "a wait before now": (lambda: queue(max_wait_seconds=-1), "max_wait_seconds is -1; it must be 0 to 900"),
    "a wait of hours": (lambda: queue(max_wait_seconds=901), "max_wait_seconds is 901; it must be 0 to 900"),
    "a wait for ever": (lambda: queue(max_wait_seconds=float("nan")), "max_wait_seconds is nan; it must be 0 to 900"),
    "dead letters on their own queue": (lambda: queue(dead_letters="q"), "so stranded messages would come back for ever; name another"),
    "identity that is no path": (lambda: queue(identity="order..id"), "identity 'order..id' is neither a dotted path in the body nor"),
    "identity of the envelope": (lambda: queue(identity="@message_id"), "identity '@message_id' is neither a dotted path"),
    "identity in a text": (lambda: queue(Text(), identity="order_id"), "is a path in a JSON body, but bodies are read as text"),
    "stranded, and then": (lambda: queue(on_stranded="stop"), "Queue 'q': on_stranded 'stop' is not known; there are halt, continue"),
    "a field of a message that is not promised": (lambda: Json(ORDERS, {"ordr": "id"}), "Json: fields maps 'ordr', which the contract"),
    "something of the envelope": (lambda: Json(ORDERS, {"sku": "@sender"}), "Json: field 'sku': '@sender' is not known"),
    "the body of a text": (lambda: Text(NOTE, {"at": "@body.at"}), "Text: field 'at': '@body.at' is not known"),
    "a text with an open field": (lambda: Text(NOTE), "Text: field 'at' is neither 'body' nor mapped to one of @key, @sent_at"),
    "grain changed, batches left to chance": (
        lambda: started_by_messages(Transform("x", GROUPED, SUMS, grain="changed"), into("x", key="sku")),
        "stop 'x' changes the grain, and which messages share a trip is chance: say combine='alone'",
    ),
    "accumulated into an upsert": (
        lambda: started_by_messages(Transform("x", GROUPED, SUMS, grain="changed", combine="accumulate"), into("x", key="sku")),
        "stop 'x' says combine='accumulate', but drop-off 'd' is a table in mode 'upsert'; give it mode='accumulate'",
    ),
    "accumulated further on": (
        lambda: started_by_messages(
            Transform("x", GROUPED, SUMS, grain="changed", combine="accumulate"), Transform("y", same, SUMS, after=("x",)), into("y")
        ),
        "drop-off 'd' is a table in mode 'append'",
    ),
    "messages that are only looked up": (
        lambda: started_by_messages(SKUS, Transform("x", JOINED, SUMS, after=("skus", "messages"), grain="changed"), into("x")),
        "a message of 'messages', which it looks up: write after=('messages', 'skus'), and have it",
    ),
    "messages that are only looked up, further on": (
        lambda: started_by_messages(
            SKUS,
            NAMED,
            Transform("y", same, ORDERS, after=("named",)),
            Transform("z", same, ORDERS, after=("skus",)),
            Transform("x", lambda z, skus, y: z, ORDERS, after=("z", "skus", "y")),
        ),
        "a message of 'y', which it looks up: write after=('y', 'z', 'skus'), and have it",
    ),
    "sums of messages that are only looked up": (
        lambda: started_by_messages(
            SKUS,
            Transform("sums", GROUPED, SUMS, after=("messages",), grain="changed", combine="accumulate"),
            Transform("x", both, ORDERS, after=("skus", "sums")),
        ),
        "stop 'x': its rows belong to 'skus', so nobody could tell which of them come from a message of 'sums', which it looks up",
    ),
    "sums that look up what single messages bring": (
        lambda: started_by_messages(
            NAMED, Transform("x", JOINED.replace("skus", "named"), SUMS, ("named", "messages"), "changed", "accumulate")
        ),
        "stop 'x' looks up 'messages', and one of the two is added up from several messages",
    ),
    "sums that are looked up": (
        lambda: started_by_messages(
            Transform("sums", GROUPED, SUMS, grain="changed", combine="accumulate"),
            Transform("x", both, ORDERS, after=("messages", "sums")),
        ),
        "stop 'x' looks up 'sums', and one of the two is added up from several messages",
    ),
    "rows at least, of whichever messages share a trip": (
        lambda: route(triggers=(queue(Json(replace(ORDERS, min_rows=1))),)),
        "stop 'messages': min_rows=1 would be counted over the messages that happen to share a trip; leave it out",
    ),
    "rows at least, of what a message names": (
        lambda: started_by_messages(replace(NAMED, contract=replace(ORDERS, min_rows=3))),
        "stop 'named': min_rows=3 would be counted over the messages that happen to share a trip; leave it out",
    ),
    "rows at least, of sums": (
        lambda: started_by_messages(Transform("x", GROUPED, replace(SUMS, min_rows=3), grain="changed", combine="accumulate")),
        "stop 'x': min_rows=3 would be counted over the messages that happen to share a trip; leave it out",
    ),
    "a reference to messages from what is none": (
        lambda: started_by_messages(replace(SKUS, contract=Contract((Field("sku", references="messages.sku"),)))),
        "stop 'skus': field 'sku' references 'messages.sku', which is asked within each message, and no row of 'skus' belongs to one",
    ),
    "a reference to sums of messages": (
        lambda: started_by_messages(
            Transform("sums", GROUPED, SUMS, grain="changed", combine="accumulate"),
            replace(NAMED, contract=Contract((Field("sku", references="sums.sku"),))),
        ),
        "stop 'named': field 'sku' references 'sums.sku', which is asked within each message, and no row of 'sums' belongs to one",
    ),
    "a reference of sums of messages": (
        lambda: started_by_messages(
            Transform("x", GROUPED, Contract((Field("sku", references="named.sku"),)), ("messages",), "changed", "accumulate"), NAMED
        ),
        "stop 'x': field 'sku' references 'named.sku', which is asked within each message, and no row of 'x' belongs to one",
    ),
    "share above one": (lambda: Contract((Field("a"),), max_rejected=1.5), "for a count write a whole number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_says_what_and_where(case):
    make, said = WRONG[case]
    with pytest.raises(Misdeclared) as error:
        make()
    assert said in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("elsewhere", "ours"),
    [
        ("VARCHAR(10)", "'string'"),
        ("str", "'string'"),
        ("float", "'number'"),
        ("double precision", "'number'"),
        ("bool", "'boolean'"),
        ("datetime", "'timestamp' or 'timestamptz'"),
        ("datetime64[ns]", "'timestamp' or 'timestamptz'"),
        ("timestamp with time zone", "'timestamptz'"),
        ("timestamp without time zone", "'timestamp'"),
        ("numeric", "'decimal(P,S)'"),
        ("numeric(10,2)", "'decimal(10,2)'"),
        ("number(10, 2)", "'decimal(10,2)'"),
        ("list<numeric(10,2)>", "'decimal(10,2)'"),
        ("integr", "'integer'"),
    ],
)
def test_a_type_as_others_call_it_is_told_with_ours(elsewhere, ours):
    with pytest.raises(Misdeclared) as refused:
        Field("a", elsewhere)
    assert f"; did you mean {ours}? There are string, integer, " in refused.value.message


def test_table_keys_are_systems_to_bind():
    made = route(PickUp("x", FILE, Contract((Field("a", references=TableKey("dwh", "skus", "sku")),))))
    assert made.systems == ("landing", "dwh")


def test_importing_a_route_loads_no_orchestrator():
    code = (
        "import sys; from bus_assets import Route, PickUp, TextFile, Contract, Field, Transform, DropOff, Table\n"
        "Route('r', (PickUp('a', TextFile('l', 'a.csv'), Contract((Field('x'),))), DropOff('d', Table('w', 't'))))\n"
        "print([m for m in ('dagster', 'boto3', 'pandas', 'pyarrow', 'sqlalchemy', 'duckdb', 'sqlglot', 'dlt') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_foreign_resources_package_is_named(tmp_path):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bus_assets"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"'resources' is found at {tmp_path / 'resources' / '__init__.py'}" in found.stderr


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: Queue("events", "json"), "Queue 'events': decode is 'json'; expected Json(…) or Text(…) or S3Event(…)"),  # pyright: ignore
        (lambda: Json("order"), "Json 'order': contract is 'order'; expected Contract(…)"),  # pyright: ignore
        (lambda: Route("r", ("messages",)), "Route 'r': stops.0 is 'messages'; expected PickUp(…) or Transform(…) or DropOff(…)"),  # pyright: ignore
        (
            lambda: Contract(Field("a")),  # pyright: ignore
            "Contract: fields is Field(…), which is no tuple, as a comma is missing: write fields=(Field(…),)",
        ),
        (
            lambda: Contract(fields=Field("a")),  # pyright: ignore
            "Contract: fields is Field(…), which is no tuple, as a comma is missing: write fields=(Field(…),)",
        ),
        (
            lambda: Contract(Field("a"), Field("b"), Field("c")),  # pyright: ignore
            "Contract: fields is no tuple, as its parentheses are missing: write fields=(Field(…), Field(…), Field(…))",
        ),
        (
            lambda: Route("r", orders(), DropOff("d", Table("w", "t"))),  # pyright: ignore
            "Route 'r': stops is no tuple, as its parentheses are missing: write stops=(PickUp(…), DropOff(…))",
        ),
        (lambda: Field("a", allowed="x"), "Field 'a': allowed is 'x', which is no tuple, as a comma is missing: write allowed=('x',)"),  # pyright: ignore
        (
            lambda: Queue("events", Json(Contract((Field("a"),))), "many"),
            "Queue 'events': batch: input should be a valid integer, unable to parse string as an integer",
        ),  # pyright: ignore
    ],
)
def test_an_argument_of_another_kind_is_named_and_told_what_it_should_be(declare, says):
    with pytest.raises(Misdeclared) as refused:
        declare()
    assert refused.value.message == says


def test_the_line_of_what_is_refused_is_told(tmp_path, monkeypatch):
    lines = {
        "Field('a',\n      reqired=True)": 2,
        "\nRoute('r', (PickUp('a', TextFile('l', 'x'), Contract((Field('a'),))),),\n      triggers=(Cron('0 5 * *'),))": 4,
        "replace(Field('a'), pattern='(')": 2,
        "A = Contract((Field('a'),))\nRoute('r', (PickUp('x', TextFile('l', 'x'), A), Transform('b', 'SELECT b FROM x', A)))": 3,
    }
    monkeypatch.chdir(tmp_path)
    for number, (declared, line) in enumerate(lines.items()):
        (tmp_path / f"declared_{number}.py").write_text(f"from dataclasses import replace; from bus_assets import *\n{declared}\n")
        with pytest.raises(Misdeclared) as refused:
            runpy.run_path(str(tmp_path / f"declared_{number}.py"))
        assert refused.value.place == f"declared_{number}.py, line {line}"
        assert str(refused.value).count(".py, line") == 1
