-- Extends a claim that is still this nonce's.
--
-- KEYS  claim, holder, token
-- ARGV  nonce, ttl (ms), token
--
-- Answers the nonce, then `extended` with the PTTL that was left, or `lost`.
local function run()
  local claim = KEYS[1]
  if soft('GET', claim) ~= ARGV[1] then
    call('PEXPIRE', KEYS[3], TOKEN_LIFE) -- refused by a replica, which may know too little
    return ARGV[1] .. ' lost'
  end
  local left = call('PTTL', claim)
  call('PEXPIRE', claim, ARGV[2])
  dirty = true
  call('PEXPIRE', KEYS[2], ARGV[2])
  if call('PEXPIRE', KEYS[3], TOKEN_LIFE) == 0 then
    call('SET', KEYS[3], ARGV[3], 'PX', TOKEN_LIFE)
  end
  return ARGV[1] .. ' extended ' .. left
end
