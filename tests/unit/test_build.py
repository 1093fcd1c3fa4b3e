"""Route → Dagster: the asset graph, its checks, its lineage; nothing is opened to build it."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg
import pydantic
import pytest

from bus_assets import (
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
    S3Event,
    Table,
    TableKey,
    Text,
    TextFile,
    build_definitions,
)
from bus_assets.build.lineage import column_lineage
from resources.database import Database
from resources.depot.resource import DepotResource
from resources.errors import Misconfigured
from resources.files import LocalFiles
from resources.http import WebService
from resources.queue import SqsQueue
from resources.s3_files import S3Files
from resources.staging import StagingArea
from tests.fakes import FakeQueue
from tests.world import ORDERS, shop

SYSTEMS = {"landing": LocalFiles(root="/nowhere"), "warehouse": Database(url="sqlite:////nowhere/warehouse.db")}


@pytest.fixture
def defs():
    return build_definitions((shop(triggers=(Cron("0 5 * * *", zone="Europe/Berlin"),), owners=("team:shop",)),), SYSTEMS)


def test_the_asset_graph_is_this(defs):
    graph = defs.resolve_asset_graph()
    edges = {key.to_user_string(): sorted(k.to_user_string() for k in graph.get(key).parent_keys) for key in graph.get_all_asset_keys()}
    assert edges == {
        "landing/orders_.csv": [],
        "shop/orders": ["landing/orders_.csv"],
        "shop/priced": ["shop/orders"],
        "shop/totals": ["shop/priced"],
        "shop/log": ["shop/orders"],
    }
    blocking = {f"{check.asset_key.to_user_string()}:{check.name}" for check in graph.asset_check_keys}
    assert blocking == {
        "shop/orders:contract",
        "shop/orders:conserved",
        "shop/priced:contract",
        "shop/priced:conserved",
        "shop/totals:conserved",
        "shop/log:conserved",
    }


def test_drop_offs_into_one_database_are_one_step_that_cannot_be_split(defs):
    graph = defs.resolve_asset_graph()
    node = graph.get(dg.AssetKey(["shop", "log"]))
    assert {key.path[-1] for key in node.execution_set_asset_keys} == {"totals", "log"}


def test_the_schedule_ticks_in_its_zone(defs):
    schedule = defs.resolve_schedule_def("shop_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 5 * * *", "Europe/Berlin")


def test_column_lineage_is_derived_through_sql_and_renaming():
    route = shop(stops=(*shop().stops[:2], DropOff("t", Table("warehouse", "t"), columns={"sum": "total"})))
    deps = column_lineage(route, "priced").deps_by_column["total"]
    assert {(dep.asset_key.to_user_string(), dep.column_name) for dep in deps} == {("shop/orders", "qty"), ("shop/orders", "price")}
    (dep,) = column_lineage(route, "t").deps_by_column["sum"]
    assert (dep.asset_key.to_user_string(), dep.column_name) == ("shop/priced", "total")


def external(routes, resources):
    specs = build_definitions(routes, resources).resolve_asset_graph()
    return {key.to_user_string(): specs.get(key) for key in specs.external_asset_keys}


def test_a_place_that_is_read_in_several_ways_tells_of_all_of_them():
    def reading_events(name, source):
        stops = (PickUp("ids", source, contract=IDS), DropOff("t", Table("warehouse", name), of="ids"))
        return Route(name=name, triggers=(Queue(f"{name}_events", S3Event()),), stops=stops)

    routes = (
        reading_events("text", TextFile("landing", "{message.key}")),
        reading_events("lines", JsonLines("landing", "{message.key}")),
        reading_events("more", TextFile("landing", "{message.key}")),
    )
    place = external(routes, {**SYSTEMS, **{f"{route.name}_events": FakeQueue() for route in routes}})["landing/message.key"]
    assert place.description == (
        "TextFile `{message.key}` on landing, read by text/ids, more/ids\n\nJsonLines `{message.key}` on landing, read by lines/ids"
    )
    assert place.kinds == {"csv", "json"}


URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders"
QUEUES = {
    "by name": (SqsQueue(name="orders"), "SQS queue `orders` (resource events)", {"queue": "orders"}),
    "by URL": (SqsQueue(name=URL), "SQS queue `orders` (resource events)", {"queue": "orders", "URL": URL}),
    "by EnvVar": (
        SqsQueue(name=dg.EnvVar("ORDERS_QUEUE"), region=dg.EnvVar("ORDERS_REGION")),
        'SQS queue `EnvVar("ORDERS_QUEUE")` (resource events)',
        {"queue": 'EnvVar("ORDERS_QUEUE")', "region": 'EnvVar("ORDERS_REGION")'},
    ),
    "with a secret": (SqsQueue(name="https://bus:t0psecret@sqs/123456789012/orders"), "SQS queue (resource events)", {}),
    "of another kind": (FakeQueue(), "queue of kind FakeQueue (resource events)", {}),
}


@pytest.mark.parametrize(("queue", "called", "told"), QUEUES.values(), ids=QUEUES)
def test_a_queue_is_described_to_a_stranger_by_what_is_known_without_asking_aws(queue, called, told):
    resources = {**SYSTEMS, "events": queue, "dead": SqsQueue(name="orders-dead")}
    place = external((shop(**EVENTS),), resources)["queue/events"]
    dead = "dead letters go to SQS queue `orders-dead` (resource dead)"
    assert place.description == f"{called}: its messages start trips of route shop; {dead}."
    told_of = {name: getattr(value, "value", value) for name, value in place.metadata.items()}
    assert told_of == {"resource": "events", "dead letters": "orders-dead", **told}


def test_the_messages_stop_says_what_its_rows_are():
    said = {"events": Json(IDS), "items": Json(IDS, records="lines"), "texts": Text(), "files": S3Event()}
    routes = [shop(name=name, triggers=(Queue(name, decode),)) for name, decode in said.items()]
    graph = build_definitions(routes, {**SYSTEMS, **{name: FakeQueue() for name in said}}).resolve_asset_graph()
    assert [graph.get(dg.AssetKey([name, "messages"])).description for name in said] == [
        "A row for each message of the queue bound as `events`: its JSON body.",
        "A row for each item of `lines` in the JSON body of a message of the queue bound as `items`.",
        "A row for each message of the queue bound as `texts`: its body as text.",
        "A row for each message of the queue bound as `files`: the S3 object that it tells of.",
    ]


def test_building_opens_no_connection(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_definitions((shop(),), {**SYSTEMS, "warehouse": Database(url="postgresql://db.invalid/x")}).resolve_job_def("shop")


WRONG = {
    "unbound": (lambda: build_definitions((shop(),), {"landing": SYSTEMS["landing"]}), "needs a resource 'warehouse', which is not bound"),
    "a route alone": (lambda: build_definitions(shop(), SYSTEMS), "a comma makes a tuple"),
    "routes in a dict": (lambda: build_definitions({"shop": shop()}, SYSTEMS), "got 'shop' among them; of a dict pass its values"),
    "two of a name": (lambda: build_definitions((shop(), shop()), SYSTEMS), "two routes are called 'shop'"),
    "taken name": (lambda: build_definitions((shop(),), {**SYSTEMS, "bus_depot": 1}), "is the platform's own"),
    "taken key": (
        lambda: build_definitions(
            (shop(stops=(*shop().stops, DropOff("x", Table("warehouse", "x"), of="orders", key=("shop", "log")))),), SYSTEMS
        ),
        "asset key 'shop/log' is made by",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_built_says_why(case):
    make, said = WRONG[case]
    with pytest.raises(Misdeclared, match=said):
        make()


IDS = Contract((Field("id"),))
QUERY = Query("legacy", "SELECT 1 AS id")
KNOWN = Contract((Field("id", references=TableKey("legacy", "ids", "id")),))
EVENTS = {"triggers": (Queue("events", Json(IDS), dead_letters="dead"),)}


def reading(source, contract=IDS):
    return shop(stops=(PickUp("ids", source, contract),))


UNFIT = {
    "a database for files": (
        shop(),
        {"landing": SYSTEMS["warehouse"]},
        "'orders'",
        r"Database, which has no list\(\) and no open\(\)",
        "S3Files",
    ),
    "files for a table": (shop(), {"warehouse": SYSTEMS["landing"]}, "'totals'", "LocalFiles, which has no prepare", r"\(Database"),
    "a queue for a query": (reading(QUERY), {"legacy": SqsQueue(name="q")}, "'ids'", "SqsQueue, which has no read", r"\(Database"),
    "a database for an endpoint": (
        reading(Endpoint("crm", "/x")),
        {"crm": SYSTEMS["warehouse"]},
        "'ids'",
        "Database, .* records",
        "WebService",
    ),
    "files for a reference": (
        reading(TextFile("landing", "x"), KNOWN),
        {"legacy": SYSTEMS["landing"]},
        "'id'",
        "no column_keys",
        "Database",
    ),
    "files for a queue": (
        shop(**EVENTS),
        {"events": SYSTEMS["landing"], "dead": FakeQueue()},
        "Queue",
        "LocalFiles, .* receive",
        "SqsQueue",
    ),
    "files for dead letters": (shop(**EVENTS), {"events": FakeQueue(), "dead": SYSTEMS["landing"]}, "dead_letters", "no send", "SqsQueue"),
    "a URL": (shop(), {"warehouse": "postgresql://bus:t0psecret@db/x"}, "'totals'", "kind str, which", r"Database\(…\)"),
    "a class": (shop(), {"landing": LocalFiles}, "'orders'", "the class LocalFiles, and no instance", r"LocalFiles\(…\)"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_resource_of_the_wrong_kind_is_refused_with_what_it_is_and_what_is_needed(case):
    route, resources, asking, is_this, needed = UNFIT[case]
    system = "legacy" if "legacy" in resources else next(iter(resources)) if case != "files for dead letters" else "dead"
    with pytest.raises(
        Misdeclared, match=f"^route 'shop', .*{asking}.*, and resource '{system}' is .*{is_this}.*: name .*{needed}"
    ) as told:
        build_definitions((route,), {**SYSTEMS, **resources})
    assert "t0psecret" not in str(told.value)


class Shelf:
    """Files of somebody's own. What it would have to connect for must not be asked."""

    where = property(lambda self: pytest.fail("it was asked where it is"))

    def list(self, pattern):
        return ()

    def open(self, name, version=None):
        raise AssertionError


class ShelfByConfig(dg.ConfigurableResource):
    place: str
    where, list, open = Shelf.where, Shelf.list, Shelf.open


class ShelfMaker(dg.ConfigurableResource):
    def create_resource(self, context):
        return Shelf()


class LentLater(dg.ConfigurableResource):
    place: str = ""

    def setup_for_execution(self, context):
        shelf = Shelf()
        object.__setattr__(self, "list", shelf.list)
        object.__setattr__(self, "open", shelf.open)


class Proxy:
    def __getattribute__(self, name):
        return object.__getattribute__(self, name)


class Lender:
    def __getattr__(self, name):
        if name.startswith("_"):  # Dagster asks for some of its own
            raise AttributeError(name)
        pytest.fail(f"it was asked for {name}")


OWN = {
    "an object": Shelf(),
    "a resource with a variable": ShelfByConfig(place=dg.EnvVar("NOT_SET_ANYWHERE")),
    "configured at launch": LocalFiles.configure_at_launch(),
    "what makes one": ShelfMaker(),
    "a function that makes one": dg.ResourceDefinition(lambda _: Shelf()),
    "what has them when it is used": LentLater(),
    "an object that answers when asked": Lender(),
    "an object that answers everything": Proxy(),
    "a web service": WebService(base_url="https://files.invalid"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_resource_of_ones_own_that_has_what_a_stop_calls_is_bound_unasked(case):
    assert build_definitions((shop(),), {**SYSTEMS, "landing": OWN[case]}).resolve_job_def("shop")


@dataclass
class Own:
    """A source of somebody's own: what it calls of its system, only it knows."""

    system: str
    fields: Mapping[str, str]

    def read(self, system, fields, values):
        return system()

    def recount(self, system, values):
        return 0

    def address(self):
        return "own"

    def templates(self):
        return ()


def test_the_system_of_a_source_of_ones_own_is_not_judged():
    route = shop(stops=(PickUp("orders", Own("landing", {}), ORDERS),))
    assert build_definitions((route,), {**SYSTEMS, "landing": 7}).resolve_job_def("shop")


def test_a_parameter_is_described_in_the_launchpad():
    described = Parameter("month", "integer", default=1, description="1 to 12"), Parameter("year", "integer", description="of four digits")
    made = build_definitions((shop(parameters=described),), SYSTEMS).resources["shop_parameters"]
    shown = made.get_resource_definition().config_field.config_type.fields
    assert {name: (field.description, field.is_required) for name, field in shown.items()} == {
        "month": ("1 to 12", False),
        "year": ("of four digits", True),
    }


def test_parameters_are_typed_in_the_launchpad(tmp_path):
    route = shop(parameters=(Parameter("month", "integer", default=1),))
    job = build_definitions((route,), SYSTEMS).resolve_job_def("shop")
    with pytest.raises(dg.DagsterInvalidConfigError):
        job.execute_in_process(run_config={"resources": {"shop_parameters": {"config": {"month": "x"}}}})


@pytest.mark.parametrize("made", [Database, DepotResource, LocalFiles, S3Files, SqsQueue, StagingArea, WebService])
def test_an_option_that_a_resource_does_not_have_is_refused(made):
    """Dagster passes over it: then its default holds, and nobody knows."""
    with pytest.raises(Misconfigured, match=rf"{made.__name__} has no option 'timeot'; .*there are .*{next(iter(made.model_fields))}"):
        made(timeot="hunter2")


def test_a_resource_made_of_ours_says_which_options_it_has():
    class Aliased(Database):
        region: str = pydantic.Field(default="eu", alias="aws_region")

    class Open(Database, extra="allow"):
        pass

    assert Aliased(url="sqlite:////x.db", aws_region="us").region == "us"  # pyright: ignore[reportCallIssue]
    assert Open(url="sqlite:////x.db", team="bus").team == "bus"  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with pytest.raises(Misconfigured, match="Aliased has no option 'reign'; did you mean 'region'"):
        Aliased(url="sqlite:////x.db", reign="us")  # pyright: ignore[reportCallIssue]


def test_an_option_of_a_wrong_type_is_refused_without_being_shown():
    with pytest.raises(pydantic.ValidationError) as refused:
        Database(url=["hunter2"])  # pyright: ignore[reportArgumentType]
    assert "url" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("secret", ["postgresql://bus:t0psecret@db/x", "https"])
def test_a_secret_in_plain_text_is_not_in_what_dagster_shows(secret):
    from dagster._core.remote_representation.external_data import RepositorySnap  # what the UI is given
    from dagster._serdes import serialize_value

    secretive = Database(url=secret) if "@" in secret else WebService(base_url="https://x", auth="bearer", token="t0psecret")
    defs = build_definitions((shop(),), {**SYSTEMS, "secretive": secretive})
    shown = serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
    assert "t0psecret" not in shown
    assert "/nowhere" in shown  # the snapshot does hold the configuration of the others


def test_a_secret_by_name_stays_a_name_and_is_resolved(monkeypatch):
    monkeypatch.setenv("SHOP_WAREHOUSE", "sqlite:////nowhere/by-name.db")
    defs = build_definitions((shop(),), {**SYSTEMS, "warehouse": Database(url=dg.EnvVar("SHOP_WAREHOUSE"))})
    with dg.build_resources({"warehouse": defs.resources["warehouse"]}) as bound:
        assert bound.warehouse.where == "sqlite:////nowhere/by-name.db"
