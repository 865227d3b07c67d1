-- Takes a claim, or a place in its line.
--
-- KEYS  claim, token, holder, line, beat, void
-- ARGV  nonce, ttl, record, queue ('1' or '0'), place, patience (us), life of the token, news
-- Times are in milliseconds where nothing else is said. `news` is '1' where a change is published.
--
-- Answers nonce, then one of
--   held, token, and the record if it was held before
--   blocked, PTTL of the claim, 1 if first in line
--   void: this nonce was abandoned
--   lost: the claim is this nonce's, but its token is gone
--   refused, why: nothing was done
local function run()
  local claim, holder, line, beat = KEYS[1], KEYS[3], KEYS[4], KEYS[5]
  local nonce, place = ARGV[1], ARGV[5]
  local last = redis.call('GET', KEYS[2])
  local now = microseconds()
  local first

  -- The usual case costs one look: nobody holds, nobody waits, nothing was abandoned.
  if redis.call('EXISTS', claim, holder, line, KEYS[6]) > 0 then
    local owner = redis.call('GET', claim)
    redis.call('STRLEN', holder) -- refuses another type before anything is written
    if redis.call('EXISTS', KEYS[6]) == 1 then return {nonce, 'void'} end
    if owner == nonce then
      if not last then return {nonce, 'lost'} end
      redis.call('PEXPIRE', claim, ARGV[2])
      dirty = true
      redis.call('PEXPIRE', KEYS[2], ARGV[7])
      -- The record may have been changed since: it stays as it is, and is told.
      local record = redis.call('GET', holder) or ARGV[3]
      redis.call('SET', holder, record, 'PX', ARGV[2])
      return {nonce, 'held', last, record}
    end
    redis.call('ZCARD', beat)
    first = first_in_line(line, beat, now, tonumber(ARGV[6]))
    if owner or (first and first ~= place) then
      if ARGV[4] == '1' then
        -- A line outlives those who stand in it by no more than this.
        local life = math.ceil(ARGV[6] / 500)
        redis.call('ZADD', line, 'NX', now, place)
        dirty = true
        redis.call('ZADD', beat, now, place)
        redis.call('PEXPIRE', line, life)
        redis.call('PEXPIRE', beat, life)
        first = first or place
      end
      return {nonce, 'blocked', redis.call('PTTL', claim), first == place and 1 or 0}
    end
  end

  if last then
    last = tonumber(last)
    if not (last and last >= 0 and last < 9007199254740991) then
      return {nonce, 'refused', 'WRONGTYPE the value of ' .. KEYS[2] .. ' is no token'}
    end
    if last >= now then now = last + 1 end
  end
  -- Not tostring: it rounds, and two grants within 100 us would have the same token.
  local token = string.format('%.0f', now)
  redis.call('SET', claim, nonce, 'PX', ARGV[2])
  dirty = true
  redis.call('SET', holder, ARGV[3], 'PX', ARGV[2])
  redis.call('SET', KEYS[2], token, 'PX', ARGV[7])
  if first then
    redis.call('ZREM', line, place)
    redis.call('ZREM', beat, place)
  end
  if ARGV[8] == '1' then redis.pcall('PUBLISH', claim, 'held') end
  return {nonce, 'held', token}
end
