"""COPY in binary: every value arrives as it was, and tables whose types are not exactly these go another way."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool

from resources import copy_binary
from resources.copy_binary import as_binary, takes_binary
from resources.database import Database
from resources.errors import Poison

UTC = dt.UTC
KINDS = {
    "t": ("text", pa.string()),
    "v": ("varchar(50)", pa.string()),
    "i": ("bigint", pa.int64()),
    "f": ("double precision", pa.float64()),
    "b": ("boolean", pa.bool_()),
    "d": ("date", pa.date32()),
    "n": ("numeric(14,2)", pa.decimal128(14, 2)),
    "w": ("numeric", pa.decimal128(18, 7)),
    "z": ("numeric(18,0)", pa.decimal128(18, 0)),
    "s": ("numeric", pa.decimal128(5, 5)),
    "ts": ("timestamp", pa.timestamp("us")),
    "tz": ("timestamptz", pa.timestamp("us", "UTC")),
}
SCHEMA = pa.schema([(name, kind) for name, (_, kind) in KINDS.items()])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def decimals(digits: int, scale: int) -> st.SearchStrategy[Decimal]:
    most = 10**digits - 1
    return st.one_of(st.sampled_from([-most, 0, most]), st.integers(-most, most)).map(lambda units: Decimal(units).scaleb(-scale))


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "t": st.none() | TEXT,
            "v": st.none() | TEXT,
            "i": st.none() | st.integers(-(2**63), 2**63 - 1),
            "f": st.none() | st.floats(allow_nan=False),
            "b": st.none() | st.booleans(),
            "d": st.none() | st.dates(),
            "n": st.none() | decimals(14, 2),
            "w": st.none() | decimals(18, 7),
            "z": st.none() | decimals(18, 0),
            "s": st.none() | decimals(5, 5),
            "ts": st.none() | st.datetimes(),
            "tz": st.none() | st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(UTC)),
        }
    ),
    min_size=1,
    max_size=20,
)


@pytest.fixture(scope="module")
def table(postgres_url):
    engine = sa.create_engine(postgres_url, connect_args={"options": "-c timezone=UTC"})
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE copied ({', '.join(f'{name} {sql}' for name, (sql, _) in KINDS.items())})")
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE copied")
    engine.dispose()


def arrived(engine, database, *batches):
    """What the table has after ``batches`` were appended to it while it was empty."""
    with database.transaction() as transaction:
        transaction.append("copied", SCHEMA.names, batches)
    with engine.begin() as connection:
        rows = [dict(row._mapping) for row in connection.exec_driver_sql("SELECT * FROM copied ORDER BY ctid")]
        connection.exec_driver_sql("TRUNCATE copied")
    return rows


def reflected(engine):
    return {column.name: column.type for column in sa.Table("copied", sa.MetaData(), autoload_with=engine).columns}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, cut=st.integers(0, 20))
def test_every_value_arrives_as_it_was(table, postgres_url, rows, cut):
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    assert takes_binary(batch.schema, SCHEMA.names, reflected(table))
    assert arrived(table, Database(url=postgres_url), batch.slice(0, cut), batch.slice(cut)) == rows


@pytest.mark.parametrize("precisions", [range(1, 19), range(19, 22)], ids=["binary", "csv"])
def test_decimals_of_every_precision_and_scale_arrive_as_they_were(postgres_database_url, precisions):
    kinds = {f"d{p}_{s}": pa.decimal128(p, s) for p in precisions for s in range(p + 1)}
    values = {
        name: [
            None if unit is None else Decimal(sign * unit).scaleb(-kind.scale)
            for unit in (0, 1, None, 10**kind.precision // 2, 10 ** (kind.precision - 1), 10**kind.precision - 1)
            for sign in (1, -1)
        ]
        for name, kind in kinds.items()
    }
    batch = pa.RecordBatch.from_pydict(values, pa.schema(list(kinds.items())))
    assert takes_binary(batch.schema, list(kinds), dict.fromkeys(kinds, sa.NUMERIC())) == (18 in precisions)
    engine = sa.create_engine(postgres_database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE amounts ({', '.join(f'{name} numeric' for name in kinds)})")
    with Database(url=postgres_database_url).transaction() as transaction:
        transaction.append("amounts", list(kinds), [batch.slice(0, 5), batch.slice(5)])
    with engine.begin() as connection:
        found = connection.exec_driver_sql("SELECT * FROM amounts ORDER BY ctid").mappings().all()
    assert [dict(row) for row in found] == batch.to_pylist()


def test_not_a_number_and_infinities_arrive(table, postgres_url):
    batch = pa.RecordBatch.from_pylist([{"f": float("nan")}, {"f": float("inf")}, {"f": float("-inf")}, {"f": -0.0}], SCHEMA)
    assert [str(row["f"]) for row in arrived(table, Database(url=postgres_url), batch)] == ["nan", "inf", "-inf", "-0.0"]


def test_rows_too_wide_for_one_buffer_are_sent_in_parts(table, postgres_url, monkeypatch):
    monkeypatch.setattr(copy_binary, "MAX_PIECE_BYTES", 1_000)
    rows = [{**dict.fromkeys(SCHEMA.names), "t": "x" * number, "i": number} for number in range(100)]
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    assert len(as_binary(batch)) > 4
    assert arrived(table, Database(url=postgres_url), batch) == rows


def test_batches_of_different_types_follow_one_another(table, postgres_url):
    exact = pa.RecordBatch.from_pylist([{"t": "first", "i": 1}], SCHEMA)
    small = exact.set_column(SCHEMA.get_field_index("i"), "i", pa.array([2], pa.int32()))
    assert [row["i"] for row in arrived(table, Database(url=postgres_url), exact, small, exact)] == [1, 2, 1]


def test_a_value_that_is_too_long_is_refused_as_in_csv(table, postgres_url):
    batch = pa.RecordBatch.from_pylist([{"v": "x" * 51}], SCHEMA)
    with pytest.raises(Poison), Database(url=postgres_url).transaction() as transaction:
        transaction.append("copied", SCHEMA.names, [batch])


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (pa.int64(), sa.INTEGER()),
        (pa.int32(), sa.BIGINT()),
        (pa.int64(), sa.NUMERIC()),
        (pa.float64(), sa.REAL()),
        (pa.string(), sa.CHAR(3)),
        (pa.string(), sa.types.NullType()),
        (pa.decimal128(19, 2), sa.NUMERIC(19, 2)),
        (pa.timestamp("us"), sa.TIMESTAMP(timezone=True)),
        (pa.timestamp("ms", "UTC"), sa.TIMESTAMP(timezone=True)),
        (pa.list_(pa.int64()), sa.JSON()),
    ],
)
def test_types_that_do_not_match_exactly_go_as_csv(kind, column):
    assert not takes_binary(pa.schema([("a", kind)]), ["a"], {"a": column})
