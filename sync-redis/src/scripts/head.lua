-- What the scripts share. Each script is this file, a file with a `run`, and tail.lua.
--
-- Nothing that `run` raises leaves the script as an error: tail.lua tells apart what was refused
-- before the first write, and so was not done, from what broke half-way. A script sets `dirty`
-- right after its first write.
--
-- An answer is a line of words, the first of which names the question; an array has one at its
-- head, and after it what may hold any bytes. One string is quicker to make and to read than three.
local dirty = false
local call = redis.call

-- In milliseconds, as text: each number that is given to a command is printed anew each time.
local TOKEN_LIFE = '604800000' -- of the counter of a name that nobody uses
local LINE_LIFE = '6000' -- of a line in which nobody stands who lives
-- Whoever has given no sign for so long is dead: three of the longest looks, for those with a
-- shorter TTL that (see `look` in backend.rs). In microseconds.
local LEAST_PATIENCE, PATIENCE = 300000, 3000000

local LONGEST_RECORD = 65536 -- what is longer is none of this crate's
local NO_TOKEN = 'no token stands in '

-- The server's time in microseconds since 1970, as a number and as text. Not by tostring: it
-- rounds to 14 digits, and two grants within 100 us would have the same token.
local function clock()
  local time = call('TIME')
  local text = time[1] .. ('00000' .. time[2]):sub(-6)
  return tonumber(text), text
end

-- Until when one lives who has given a sign just now, as text.
local function alive_until(now, ttl)
  return string.format('%.0f', now + math.max(LEAST_PATIENCE, math.min(PATIENCE, ttl * 1000)))
end

-- The first in line. Those before it that live no longer, or too long (the server's clock may have
-- gone back), are dead and removed.
local function first_in_line(line, beat, now)
  local count, first = 1, nil
  for _ = 1, 20 do -- what is left then is left to the next look
    local places = call('ZRANGE', line, 0, count - 1)
    if #places == 0 then return nil end
    local beats = call('ZMSCORE', beat, unpack(places))
    local dead = {}
    for i, place in ipairs(places) do
      first = place
      local till = tonumber(beats[i])
      if till and now <= till and till - now <= 2 * PATIENCE then break end
      dead[i], first = place, nil
    end
    if #dead > 0 then
      call('ZREM', line, unpack(dead))
      dirty = true
      call('ZREM', beat, unpack(dead))
    end
    if first then return first end
    count = 1000
  end
  return call('ZRANGE', line, 0, 0)[1]
end

-- What a command answers; a table where the key holds another type, and so is not ours.
local function soft(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err and not answer.err:find('^WRONGTYPE') then
    error(answer)
  end
  return answer
end

-- Whether a text is a token that can be counted on from.
local function is_token(text)
  return text:find('^%d+$') and tonumber(text) < 9007199254740991
end

-- The record, if it may be one.
local function record_in(holder)
  return call('STRLEN', holder) <= LONGEST_RECORD and call('GET', holder)
end
