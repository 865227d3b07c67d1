-- Takes a claim, or a place in its line.
--
-- KEYS  claim, token, holder, line, beat, void
-- ARGV  nonce, ttl (ms), record, place, queue ('1' or '0'), news ('1': publish the change)
--
-- Answers the nonce, then one of
--   held TOKEN, and apart the record if it was held before
--   blocked PTTL-OF-CLAIM FIRST, where FIRST is 1 for the first in line
--   void: this nonce was abandoned
--   lost: the claim is this nonce's, but its token is gone
--   refused WHY: nothing was done
local function run()
  local claim, holder, line, beat = KEYS[1], KEYS[3], KEYS[4], KEYS[5]
  local nonce, ttl, place = ARGV[1], ARGV[2], ARGV[4]
  local last = call('GET', KEYS[2])
  local now, token = clock()
  local first

  -- The usual case costs one look: nobody holds, nobody waits, nothing was abandoned.
  if call('EXISTS', claim, holder, line, KEYS[6]) > 0 then
    local owner = call('GET', claim)
    call('STRLEN', holder) -- refuses another type before anything is written
    if call('EXISTS', KEYS[6]) == 1 then return nonce .. ' void' end
    if owner == nonce then
      if not last then return nonce .. ' lost' end
      if not is_token(last) then return nonce .. ' refused WRONGTYPE ' .. NO_TOKEN .. KEYS[2] end
      call('PEXPIRE', claim, ttl)
      dirty = true
      call('PEXPIRE', KEYS[2], TOKEN_LIFE)
      -- The record may have been changed since: it stays as it is, and is told.
      local record = record_in(holder) or ARGV[3]
      call('SET', holder, record, 'PX', ttl)
      return {nonce .. ' held ' .. last, record}
    end
    call('ZCARD', beat)
    first = first_in_line(line, beat, now)
    if owner or (first and first ~= place) then
      if ARGV[5] == '1' then
        call('ZADD', line, 'NX', token, place)
        dirty = true
        call('ZADD', beat, alive_until(now, ttl), place)
        call('PEXPIRE', line, LINE_LIFE)
        call('PEXPIRE', beat, LINE_LIFE)
        first = first or place
      else
        call('ZREM', line, '') -- refused by a replica, which may know too little
      end
      return nonce .. ' blocked ' .. call('PTTL', claim) .. (first == place and ' 1' or ' 0')
    end
  end

  if last then
    if not is_token(last) then return nonce .. ' refused WRONGTYPE ' .. NO_TOKEN .. KEYS[2] end
    last = tonumber(last)
    if last >= now then token = string.format('%.0f', last + 1) end
  end
  call('SET', claim, nonce, 'PX', ttl)
  dirty = true
  call('SET', holder, ARGV[3], 'PX', ttl)
  call('SET', KEYS[2], token, 'PX', TOKEN_LIFE)
  if first then
    call('ZREM', line, place)
    call('ZREM', beat, place)
  end
  if ARGV[6] == '1' then redis.pcall('PUBLISH', claim, 'held') end
  return nonce .. ' held ' .. token
end
