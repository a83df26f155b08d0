# What users of ActiveRecord do besides; runs after the code of docs/activerecord.md.
def check(is_so, what)
  raise what unless is_so
end

check Incident.connection.foreign_tables.include?("incident"), "it is listed"
check Incident.connection.columns("incident").find { |c| c.name == "short_description" }.comment == "Short description", "labels are comments"
check Incident.columns_hash["sys_updated_on"].type == :datetime, "types are known"

incident.reload
check incident.state == "In Progress" && incident.number.start_with?("INC"), "it is kept"
plotters = Incident.where("short_description LIKE 'Plotter%'")
check plotters.pluck(:urgency_value) == [1] * 100, "all are changed"
check plotters.order(:number).limit(3).offset(2).to_a.size == 3, "pages"
check Incident.find_each(batch_size: 20).count == Incident.count, "in batches"
check Incident.group(:state).count.values.sum == Incident.count, "grouped"

Incident.transaction do
  added = 3.times.map { |n| Incident.create!(short_description: "added #{n}") }
  check added.map(&:sys_id).uniq.size == 3, "each has its key"
  locked = Incident.lock.where(sys_id: added.map(&:sys_id)).order(:sys_id).to_a
  check locked.size == 3, "they are locked"
  added.first.destroy!
  check added[1].tap { |one| one.update!(short_description: "changed") }.reload.short_description == "changed", "changed"
end
numbers = NewIncident.insert_all!([{ short_description: "returned" }] * 2, returning: %w[sys_id number])
check numbers.map { |row| row["number"] }.uniq.size == 2, "returned"
check NewIncident.insert_all([{ short_description: "new" }]), "ON CONFLICT DO NOTHING"
check Incident.where(short_description: "new").count == 1, "inserted"
found = Incident.create_with(impact: "2 - Medium").find_or_create_by!(short_description: "found or created")
check Incident.find_or_create_by!(short_description: "found or created") == found, "found"
begin
  Incident.upsert_all([{ sys_id: found.sys_id, short_description: "upserted" }], returning: false)
  raise "DO UPDATE is refused"
rescue ActiveRecord::StatementInvalid, ArgumentError => refusal
  puts refusal.message
end
begin
  Incident.transaction(requires_new: true) { found.update!(state: "No such state") }
  raise "there is no such state"
rescue ActiveRecord::StatementInvalid
  check Incident.find(found.sys_id).impact == "2 - Medium", "the session goes on"
end
check plotters.delete_all == 100, "deleted"
