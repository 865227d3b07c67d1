-- Ends a claim: gives it back, leaves its line, and with a life for the marker abandons it, so
-- that no attempt of this nonce that is still on its way can take it.
--
-- KEYS  claim, holder, line, beat, void
-- ARGV  nonce, place, life of the marker (ms) or '0', prefix of the wake channels, news
--
-- Answers the nonce, then `held`, `queued` or `nothing`: what there was to end.
local function run()
  local claim, line, beat = KEYS[1], KEYS[3], KEYS[4]
  local nonce, place = ARGV[1], ARGV[2]
  -- A key of another type is not ours, and neither is what stands in its line.
  local owner = soft('GET', claim)
  local waiting = soft('ZCARD', line)
  if type(waiting) == 'table' then waiting = 0 end

  local held = owner == nonce
  if held then
    call('DEL', claim, KEYS[2])
    dirty = true
  else
    -- Its record outlives a claim that somebody else removed or overwrote.
    local record = soft('GET', KEYS[2])
    if type(record) == 'string' and record:find(nonce, 1, true) then
      call('DEL', KEYS[2])
      dirty = true
    end
  end
  if ARGV[3] ~= '0' then
    call('SET', KEYS[5], '1', 'PX', ARGV[3])
    dirty = true
  end
  -- Also where nobody waits: a replica refuses to write, and what it does not know of may yet be
  -- ours on its master.
  local queued = false
  if waiting > 0 or not held then
    queued = soft('ZREM', line, place) == 1
    dirty = dirty or queued
    redis.pcall('ZREM', beat, place)
  end
  -- A hint: whoever misses it looks by itself.
  if waiting > 0 and (held or (queued and not owner)) then
    local ok, first = pcall(function() return first_in_line(line, beat, (clock())) end)
    if ok and first and #first == 65 then
      redis.pcall('PUBLISH', ARGV[4] .. first:sub(1, 32), first:sub(34) .. ' ' .. claim)
    end
  end
  if held and ARGV[5] == '1' then redis.pcall('PUBLISH', claim, 'ended') end
  return nonce .. (held and ' held' or queued and ' queued' or ' nothing')
end
