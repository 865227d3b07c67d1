-- What the scripts share. Each script is this file, a file with a `run`, and tail.lua.
--
-- Nothing that `run` raises leaves the script as an error: tail.lua tells apart what was refused
-- before the first write, and so was not done, from what broke half-way. A script sets `dirty`
-- right after its first write.
local dirty = false

-- The first in line. Those before it whose heartbeat is missing, or further away from now than
-- `patience` (in microseconds; the server's clock may have gone back), are dead and removed.
local function first_in_line(line, beat, now, patience)
  local count, first = 1, nil
  for _ = 1, 20 do -- what is left then is left to the next look
    local places = redis.call('ZRANGE', line, 0, count - 1)
    if #places == 0 then return nil end
    local beats = redis.call('ZMSCORE', beat, unpack(places))
    local dead = {}
    for i, place in ipairs(places) do
      first = place
      local last = tonumber(beats[i])
      if last and math.abs(now - last) <= patience then break end
      dead[i], first = place, nil
    end
    if #dead > 0 then
      redis.call('ZREM', line, unpack(dead))
      dirty = true
      redis.call('ZREM', beat, unpack(dead))
    end
    if first then return first end
    count = 1000
  end
  return redis.call('ZRANGE', line, 0, 0)[1]
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
