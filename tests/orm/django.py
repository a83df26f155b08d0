# What users of Django do besides; runs after the code of docs/django.md.
import io

from django.core.management import call_command
from django.db import connection

printed = io.StringIO()
call_command("inspectdb", "incident", stdout=printed)
assert "short_description = models.TextField" in printed.getvalue(), printed.getvalue()[:500]

assert Incident.objects.get(number=incident.number).state == "In Progress"
assert Incident.objects.filter(short_description__startswith="Plotter", impact="2 - Medium").count() == 100

some = list(Incident.objects.filter(short_description__startswith="Plotter 1"))
for n, one in enumerate(some):
    one.short_description = f"changed {n}"
assert Incident.objects.bulk_update(some, ["short_description"]) == len(some) == 11
assert Incident.objects.filter(short_description__startswith="changed").delete()[0] == 11
made, is_new = Incident.objects.get_or_create(short_description="got or created")
assert is_new
changed, is_new = Incident.objects.update_or_create(
    short_description="got or created", defaults={"state": "On Hold"}
)
assert (is_new, changed.pk) == (False, made.pk)
made.refresh_from_db()
assert made.state == "On Hold"
assert len(Incident.objects.bulk_create([Incident(short_description="new")], ignore_conflicts=True)) == 1
with transaction.atomic():
    assert sum(1 for _ in Incident.objects.iterator(chunk_size=10)) == Incident.objects.count()
by_state = Incident.objects.values("state").annotate(n=models.Count("pk"))
assert sum(group["n"] for group in by_state) == Incident.objects.count()
made.delete()
assert not Incident.objects.filter(pk=made.pk).exists()
assert connection.is_usable()
