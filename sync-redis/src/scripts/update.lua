-- Replaces the record of a claim that is still this nonce's, if it is the one that is known.
--
-- KEYS  claim, holder, line
-- ARGV  nonce, known record, new record, news
--
-- Answers the nonce, then `done`, `other`, or `stale` and apart the record that stands there.
local function run()
  local claim, holder = KEYS[1], KEYS[2]
  if call('GET', claim) ~= ARGV[1] then
    soft('ZREM', KEYS[3], '') -- refused by a replica, which may know too little
    return ARGV[1] .. ' other'
  end
  local record = record_in(holder)
  if record == ARGV[3] then return ARGV[1] .. ' done' end
  if record and record ~= ARGV[2] then return {ARGV[1] .. ' stale', record} end
  call('SET', holder, ARGV[3], 'PX', math.max(call('PTTL', claim), 1))
  dirty = true
  if ARGV[4] == '1' then redis.pcall('PUBLISH', claim, 'changed') end
  return ARGV[1] .. ' done'
end
