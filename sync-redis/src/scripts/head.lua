-- What the scripts share. Each script is this file, a file with a `run`, and tail.lua.
--
-- Nothing that `run` raises leaves the script as an error: tail.lua tells apart what was refused
-- before the first write, and so was not done, from what broke half-way. A script sets `dirty`
-- right after its first write.
local dirty = false

-- The first in line, without the dead: those whose last heartbeat (in microseconds) is older than
-- `patience`, or has not come yet because the server's clock went back.
local function first_in_line(line, beat, now, patience)
  if not redis.call('ZRANGE', line, 0, 0)[1] then return nil end
  local dead = redis.call('ZRANGEBYSCORE', beat, '-inf', now - patience, 'LIMIT', 0, 1000)
  if #dead > 0 then
    redis.call('ZREM', line, unpack(dead))
    dirty = true
    redis.call('ZREM', beat, unpack(dead))
  end
  local first
  for _ = 1, 100 do
    first = redis.call('ZRANGE', line, 0, 0)[1]
    if not first then return nil end
    local last = redis.call('ZSCORE', beat, first)
    if last and tonumber(last) <= now + patience then return first end
    redis.call('ZREM', line, first)
    dirty = true
  end
  return first
end

-- A value; a table where the key holds another type, so that it is nobody's of ours.
local function read(command, key)
  local value = redis.pcall(command, key)
  if type(value) == 'table' and not value.err:find('^WRONGTYPE') then error(value) end
  return value
end

local function microseconds()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
