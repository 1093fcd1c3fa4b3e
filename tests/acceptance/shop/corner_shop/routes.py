"""Orders of a corner shop: monthly files, an XML price list and the customers of a legacy database, into one warehouse."""

from bus_assets import Check, Contract, Cron, DropOff, Field, Parameter, PickUp, Query, Route, Table, TextFile, Transform, XmlFeed

CUSTOMERS = Contract(
    fields=(
        Field("id", "integer", required=True, unique=True),
        Field("name", required=True, min_length=1),
        Field("email", required=True, pattern="^[^@ ]+@[^@ ]+$", sensitive=True),
    ),
    max_rejected=1,
)
PRICES = Contract(
    fields=(
        Field("article", required=True, unique=True, description="as printed on the label"),
        Field("price", "decimal(10,2)", required=True, minimum="0", description="euros"),
    ),
    max_rejected=0,
)
ORDERS = Contract(
    fields=(
        Field("order_id", required=True, unique=True, pattern="^O-[0-9]+$"),
        Field("customer_id", "integer", required=True, references="customers.id"),
        Field("article", required=True, references="prices.article"),
        Field("quantity", "integer", required=True, minimum=1),
        Field("card", pattern="^[0-9]{16}$", sensitive=True, description="the card that paid"),
    ),
    max_rejected=0.5,
)
PRICED = Contract(
    fields=(
        Field("order_id", required=True, unique=True),
        Field("customer", required=True, description="the customer's name"),
        Field("quantity", "integer", required=True),
        Field("total", "decimal(14,2)", required=True, minimum="0", description="euros"),
        Field("card", sensitive=True),
    ),
    max_rejected=0,
)
PRICED_SQL = """
SELECT orders.order_id, customers.name AS customer, orders.quantity, orders.quantity * prices.price AS total, orders.card
FROM orders
LEFT JOIN customers ON customers.id = orders.customer_id
LEFT JOIN prices ON prices.article = orders.article
"""

shop = Route(
    name="shop",
    description="Orders of the corner shop, priced, into the warehouse.",
    owners=("team:corner-shop",),
    triggers=(Cron("15 6 * * *", zone="Europe/Berlin", parameters={"month": 1}),),
    parameters=(Parameter("month", "integer", default=1, description="1 to 12"),),
    stops=(
        PickUp(
            "customers",
            Query("legacy", "SELECT * FROM CUST", name="CUST", fields={"id": "CUST_NO", "name": "CUST_NAME", "email": "MAIL"}),
            contract=CUSTOMERS,
        ),
        PickUp("prices", XmlFeed("landing", "prices.xml", row="article", fields={"article": "@label", "price": "price"}), contract=PRICES),
        PickUp("orders", TextFile("landing", "orders-{params.month}.csv", delimiter=";"), contract=ORDERS),
        Transform(
            "priced",
            PRICED_SQL,
            after=("orders", "customers", "prices"),
            contract=PRICED,
            checks=(Check("no_big_orders", "SELECT * FROM priced WHERE quantity > 100", blocking=False),),
        ),
        DropOff("warehouse_orders", Table("warehouse", "orders", key="order_id", create=True), of="priced"),
        DropOff(
            "warehouse_log",
            Table("warehouse", "log", create=True),
            of="priced",
            columns={"id": "order_id", "paid": "total"},
            where="total > 0",
            description="Every order that was paid for, each trip anew. It has no key: what is dropped twice is there twice.",
        ),
    ),
)

ROUTES = (shop,)
