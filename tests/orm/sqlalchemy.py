# What users of SQLAlchemy do besides; runs after the code of docs/sqlalchemy.md.
from sqlalchemy import delete, func, inspect
from sqlalchemy.dialects.postgresql import insert as insert_pg

inspector = inspect(engine)
assert "incident" in inspector.get_foreign_table_names()
labels = {column["name"]: column["comment"] for column in inspector.get_columns("incident")}
assert labels["short_description"] == "Short description", labels


def count(session, like):
    return session.scalar(select(func.count()).select_from(Incident).where(Incident.short_description.like(like)))


with Session(engine) as session:
    printer = session.scalars(select(Incident).where(Incident.short_description == "Printer on fire")).one()
    assert printer.state == "In Progress"
    assert printer.number.startswith("INC")
    plotters = session.scalars(select(Incident).where(Incident.short_description.like("Plotter%"))).all()
    assert [plotter.urgency_value for plotter in plotters] == [1] * 100

with Session(engine) as session:
    added = [Incident(short_description=f"added {n}") for n in range(5)]
    session.add_all(added)
    session.flush()
    assert len({incident.sys_id for incident in added}) == 5
    numbers = session.scalars(
        insert(Incident).returning(Incident.number), [{"short_description": f"returned {n}"} for n in range(3)]
    ).all()
    assert len(set(numbers)) == 3
    for n, incident in enumerate(added):
        incident.short_description = f"changed {n}"
    session.flush()
    assert count(session, "changed%") == 5
    merged = session.merge(Incident(sys_id=added[0].sys_id, short_description="merged"))
    session.flush()
    session.refresh(merged)
    assert merged.number == added[0].number
    for incident in added[1:3]:
        session.delete(incident)
    session.flush()
    assert session.execute(delete(Incident).where(Incident.short_description.like("changed%"))).rowcount == 2
    session.execute(insert_pg(Incident).values(short_description="new").on_conflict_do_nothing())
    assert count(session, "new") == 1
    session.commit()

with Session(engine) as session:
    try:
        with session.begin_nested():
            incident = session.scalars(select(Incident).limit(1)).one()
            incident.state = "No such state"
            session.flush()
        raise AssertionError("no such state can be set")
    except IntegrityError:
        pass
    streamed = session.execute(select(Incident.sys_id).execution_options(yield_per=10))
    assert sum(1 for _ in streamed) == session.scalar(select(func.count()).select_from(Incident))

with Session(engine) as session:
    session.execute(text("SET LOCAL servicenow_fdw.push = 'commit'"))
    session.add(Incident(short_description="taken back before commit"))
    session.flush()
    session.rollback()
