"""What the Redis broker does inside the server: a Lua script a call, each of them all or nothing.

    jobs      hash    job ─▶ state priority entry attempt lease place ready key    every job that there is
    line:P    stream  an entry a job: payload, enqueued             priority P, in the order of its places
    back:P    zset    job by place                                  back in line: its entry was delivered before
    leases, delayed   zset  job by when that is over                in milliseconds of the shared clock
    later     hash    job ─▶ enqueued payload                       put with a delay: no entry yet
    dead      stream  an entry a dead letter                        errors: hash, job ─▶ its last error
    keys      hash    idempotency key ─▶ job                        until: zset, key by when it may be used again
    clock, place      the shared clock; the last place in line      wake: stream, what is due has changed

The server executes one script at a time, and writes what it changed to its log as one transaction: a server that is
killed in the middle has done all of it or nothing. Decisions are those of stages/policies/queueing.py, said once more.
No script asks the server what time it is: its clock is a date that somebody can set, and so is the idle time that
XPENDING and XAUTOCLAIM tell (t_stream.c subtracts two dates). broker_redis.py says where the time comes from.
"""

from __future__ import annotations

# ARGV of every script: the caller's shared time in ms, queue.attempts_max, the date in s; then the script's own.
PRELUDE = """
local P, GROUP, CONSUMER, SWEEP_MAX, TELL_MS = KEYS[1], 'workers', 'rung', 1000, 250
local JOBS, LEASES, DELAYED, LATER = P..':jobs', P..':leases', P..':delayed', P..':later'
local DEAD, ERRORS, KEY_OF, UNTIL = P..':dead', P..':errors', P..':keys', P..':until'
local CLOCK, PLACE, WAKE = P..':clock', P..':place', P..':wake'
local call = redis.call
local function line(priority) return P..':line:'..priority end
local function back(priority) return P..':back:'..priority end

local told = tonumber(call('GET', CLOCK) or '0')
local now = math.max(told, tonumber(ARGV[1]))
local attempts_max, date = tonumber(ARGV[2]), ARGV[3]

-- Those who come without a clock of their own find one that is no older than this and a tick.
local function tell_time()
  if now >= told + TELL_MS then
    call('SET', CLOCK, string.format('%.0f', now))
    told = now
  end
end

local function text(j)
  return table.concat({j.state, j.priority, j.entry, j.attempt, j.lease, j.place, j.ready, j.key}, ' ')
end

local function read(job)
  local known = call('HGET', JOBS, job)
  if not known then return nil end
  local j = {}
  j.state, j.priority, j.entry, j.attempt, j.lease, j.place, j.ready, j.key =
    string.match(known, '^(%a) (%d+) (%S+) (%d+) (%S+) (%d+) (%d+) (.*)$')
  j.attempt, j.ready = tonumber(j.attempt), tonumber(j.ready)
  return j
end

local function write(job, j) call('HSET', JOBS, job, text(j)) end

local function fields(entry)
  local found = {}
  for i = 1, #entry[2], 2 do found[entry[2][i]] = entry[2][i + 1] end
  return found
end

local function entry_of(stream, id) return fields(call('XRANGE', stream, id, id)[1]) end

-- At the end of the line, ready from now on.
local function line_up(job, j, enqueued, payload)
  j.entry = call('XADD', line(j.priority), '*', 'job', job, 'enqueued', enqueued, 'payload', payload)
  j.state, j.lease, j.place, j.ready = 'w', '-', call('INCR', PLACE), now
  write(job, j)
end

-- At its old place.
local function line_up_again(job, j)
  j.state, j.lease = 'w', '-'
  write(job, j)
  call('ZADD', back(j.priority), j.place, job)
end

local function ours(job, j, lease)
  return j and j.state == 'l' and j.lease == lease and tonumber(call('ZSCORE', LEASES, job)) > now
end

local function leave_line(job, j)
  call('XACK', line(j.priority), GROUP, j.entry)
  call('XDEL', line(j.priority), j.entry)
  call('ZREM', LEASES, job)
  call('HDEL', ERRORS, job)
end

local function bury(job, j, error)
  local entry = entry_of(line(j.priority), j.entry)
  leave_line(job, j)
  j.entry = call('XADD', DEAD, '*', 'job', job, 'priority', j.priority, 'attempts', j.attempt,
    'enqueued', entry.enqueued, 'died', date, 'error', error, 'payload', entry.payload)
  j.state, j.lease = 'x', '-'
  write(job, j)
end

local function forget_key(j, ttl_ms)
  if j.key ~= '' then call('ZADD', UNTIL, now + ttl_ms, j.key) end
end

-- Leases and delays that are over: back in line, or dead.
local function sweep()
  for _, job in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, SWEEP_MAX)) do
    local j = read(job)
    call('ZREM', LEASES, job)
    if j.attempt >= attempts_max then
      local before = call('HGET', ERRORS, job)
      bury(job, j, before and '@LEASE_RAN_OUT@ (before: '..before..')' or '@LEASE_RAN_OUT@')
    else
      line_up_again(job, j)
    end
  end
  for _, job in ipairs(call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, SWEEP_MAX)) do
    local j = read(job)
    call('ZREM', DELAYED, job)
    if j.entry == '-' then
      local enqueued, payload = string.match(call('HGET', LATER, job), '^(%S+) (.*)$')
      call('HDEL', LATER, job)
      line_up(job, j, enqueued, payload)
    else
      line_up_again(job, j)
    end
  end
end

-- Before somebody looks; where nothing can be written it is left for later.
local function settle() pcall(function() sweep() tell_time() end) end

local function wake() call('XADD', WAKE, 'MAXLEN', 1, '*', 'due', now) end
"""

TICK = "tell_time() return {now}"

# ARGV: max_depth, enqueued; then job, priority, delay_ms, key, payload of each.
PUT = """
tell_time()
local inside, answers, fresh, taken = call('HLEN', JOBS), {}, {}, {}
for i = 6, #ARGV, 5 do
  local job, key, first = ARGV[i], ARGV[i + 3], false
  if call('HEXISTS', JOBS, job) == 1 then
    first = job -- this very call came before, and its answer was lost
  elseif key ~= '' then
    local free_at = call('ZSCORE', UNTIL, key)
    if free_at and tonumber(free_at) <= now then
      call('ZREM', UNTIL, key)
      call('HDEL', KEY_OF, key)
    end
    first = taken[key] or call('HGET', KEY_OF, key)
    if not first then taken[key] = job end
  end
  if not first then fresh[#fresh + 1] = i end
  answers[#answers + 1] = first or job
end
if inside + #fresh > tonumber(ARGV[4]) then return {now, 'full', inside} end
local old = call('ZRANGEBYSCORE', UNTIL, '-inf', now, 'LIMIT', 0, SWEEP_MAX)
if #old > 0 then
  call('ZREM', UNTIL, unpack(old))
  call('HDEL', KEY_OF, unpack(old))
end
local later = false
for _, i in ipairs(fresh) do
  local job, delay_ms, payload = ARGV[i], tonumber(ARGV[i + 2]), ARGV[i + 4]
  local j = {priority = ARGV[i + 1], attempt = 0, lease = '-', key = ARGV[i + 3]}
  if delay_ms > 0 then
    j.state, j.entry, j.place, j.ready, later = 'd', '-', 0, now, true
    write(job, j)
    call('HSET', LATER, job, ARGV[5]..' '..payload)
    call('ZADD', DELAYED, now + delay_ms, job)
  else
    line_up(job, j, ARGV[5], payload)
  end
  if j.key ~= '' then call('HSET', KEY_OF, j.key, job) end
end
if later then wake() end
return {now, 'accepted', answers}
"""

# ARGV: most, lease_ms, lease, priorities. Gives [job, payload, priority, enqueued, attempt] of each; and where there is
# none, when something is due (-1: nothing) and the last entries that were seen, for somebody who waits for more.
CLAIM = """
tell_time()
sweep()
local most, lease_ms, lease, priorities = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local claimed, states, ends = {}, {}, {}
local function take(entry)
  if not entry then return end -- somebody trimmed the stream
  local found = fields(entry)
  local j = read(found.job)
  j.state, j.attempt, j.lease = 'l', j.attempt + 1, lease
  states[#states + 1], states[#states + 2] = found.job, text(j)
  ends[#ends + 1], ends[#ends + 2] = now + lease_ms, found.job
  claimed[#claimed + 1] = {found.job, found.payload, tonumber(j.priority), found.enqueued, j.attempt}
end
for priority = 0, priorities - 1 do
  if #claimed < most then
    local again = call('ZPOPMIN', back(priority), most - #claimed)
    for i = 1, #again, 2 do
      local j = read(again[i])
      take(call('XCLAIM', line(priority), GROUP, CONSUMER, 0, j.entry, 'FORCE')[1])
    end
  end
  if #claimed < most then
    local new = call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', most - #claimed, 'STREAMS', line(priority), '>')
    for _, entry in ipairs(new and new[1][2] or {}) do take(entry) end
  end
end
if #claimed > 0 then
  call('HSET', JOBS, unpack(states))
  call('ZADD', LEASES, unpack(ends))
  return {now, claimed}
end
local due, seen = -1, {}
for _, zset in ipairs({LEASES, DELAYED}) do
  local first = call('ZRANGE', zset, 0, 0, 'WITHSCORES')
  if first[2] and (due < 0 or tonumber(first[2]) < due) then due = tonumber(first[2]) end
end
local streams = {WAKE}
for priority = 0, priorities - 1 do streams[#streams + 1] = line(priority) end
for _, stream in ipairs(streams) do
  local last = '0-0'
  if call('EXISTS', stream) == 1 then
    local info = call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
  end
  seen[#seen + 1] = {stream, last}
end
return {now, claimed, due, seen}
"""

# ARGV: key_ttl_ms; then job, lease of each. Gives the jobs that were ours.
ACK = """
tell_time()
local gone = {}
for i = 5, #ARGV, 2 do
  local job, j = ARGV[i], read(ARGV[i])
  if ours(job, j, ARGV[i + 1]) then
    leave_line(job, j)
    call('HDEL', JOBS, job)
    forget_key(j, tonumber(ARGV[4]))
    gone[#gone + 1] = job
  end
end
return {now, gone}
"""

# ARGV: lease_ms; then job, lease of each.
EXTEND = """
tell_time()
local extended = 0
for i = 5, #ARGV, 2 do
  if ours(ARGV[i], read(ARGV[i]), ARGV[i + 1]) then
    call('ZADD', LEASES, now + tonumber(ARGV[4]), ARGV[i])
    extended = extended + 1
  end
end
return {now, extended}
"""

# ARGV: job, lease, error, delay_ms (-1: a dead letter at once).
FAIL = """
tell_time()
local job, j, error, delay_ms = ARGV[4], read(ARGV[4]), ARGV[6], tonumber(ARGV[7])
if not ours(job, j, ARGV[5]) then return {now, 0} end
if delay_ms < 0 or j.attempt >= attempts_max then
  bury(job, j, error)
  return {now, 1}
end
call('ZREM', LEASES, job)
call('HSET', ERRORS, job, error)
if delay_ms == 0 then
  line_up_again(job, j)
else
  j.state, j.lease = 'd', '-'
  write(job, j)
  call('ZADD', DELAYED, now + delay_ms, job)
end
wake()
return {now, 1}
"""


# Both: ARGV: key_ttl_ms, "all" or "these"; then, of these, the jobs. Of all, as many as a call may have.
def _chosen(then: str) -> str:
    """A script that does something with each of the dead letters that are named."""
    return _CHOSEN.replace("@THEN@", then)


_CHOSEN = """
tell_time()
sweep()
local jobs, done = {}, {}
if ARGV[5] == 'all' then
  for _, entry in ipairs(call('XRANGE', DEAD, '-', '+', 'COUNT', SWEEP_MAX)) do jobs[#jobs + 1] = fields(entry).job end
else
  for i = 6, #ARGV do jobs[#jobs + 1] = ARGV[i] end
end
for _, job in ipairs(jobs) do
  local j = read(job)
  if j and j.state == 'x' then
    local entry = entry_of(DEAD, j.entry)
    call('XDEL', DEAD, j.entry)
    @THEN@
    done[#done + 1] = job
  end
end
return {now, done}
"""
RETRY = _chosen("""
    j.attempt = 0
    line_up(job, j, entry.enqueued, entry.payload)
    call('HSET', ERRORS, job, entry.error)
""")
FORGET = _chosen("""
    call('HDEL', JOBS, job)
    forget_key(j, tonumber(ARGV[4]))
""")

SETTLE = "settle() return {now}"

# ARGV: the jobs. Gives [job, state, attempt, error] of those that there are.
LOOK = """
settle()
local found = {}
for i = 4, #ARGV do
  local j = read(ARGV[i])
  if j then
    local error = j.state == 'x' and entry_of(DEAD, j.entry).error or call('HGET', ERRORS, ARGV[i]) or ''
    found[#found + 1] = {ARGV[i], j.state, j.attempt, error}
  end
end
return {now, found}
"""

# ARGV: priorities. Gives waiting, leased, delayed, dead, and the age of the oldest that waits in ms.
DEPTH = """
settle()
local leased = call('ZCOUNT', LEASES, '('..string.format('%.0f', now), '+inf')
local delayed = call('ZCOUNT', DELAYED, '('..string.format('%.0f', now), '+inf')
local dead = call('XLEN', DEAD)
local oldest_ms = 0
local function see(job)
  local j = read(job)
  if j then oldest_ms = math.max(oldest_ms, now - j.ready) end
end
for priority = 0, tonumber(ARGV[4]) - 1 do
  local again = call('ZRANGE', back(priority), 0, 0)
  if again[1] then see(again[1]) end
  local after = '-'
  if call('EXISTS', line(priority)) == 1 then
    for _, group in ipairs(call('XINFO', 'GROUPS', line(priority))) do
      for i = 1, #group, 2 do
        if group[i] == 'last-delivered-id' then after = '('..group[i + 1] end
      end
    end
    local new = call('XRANGE', line(priority), after, '+', 'COUNT', 1)
    if new[1] then see(fields(new[1]).job) end
  end
end
return {now, call('HLEN', JOBS) - leased - delayed - dead, leased, delayed, dead, oldest_ms}
"""
