-- Who holds a claim, with a bound on what is read.
--
-- KEYS  claim, holder, token
-- ARGV  claim, last byte to read of each value
--
-- Answers the claim, then `free`, or `held` and apart its value, the record and the token.
local function run()
  local value = call('GETRANGE', KEYS[1], 0, ARGV[2])
  if value == '' and call('EXISTS', KEYS[1]) == 0 then return ARGV[1] .. ' free' end
  local record = call('GETRANGE', KEYS[2], 0, ARGV[2])
  return {ARGV[1] .. ' held', value, record, call('GETRANGE', KEYS[3], 0, 31)}
end
