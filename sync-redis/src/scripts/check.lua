-- Which of the commands that the scripts run this user may not run. Keys are not declared, or the
-- server would refuse the script itself and not say which command it was.
--
-- ARGV  anything, a lock's key, an election's key, a wake channel
--
-- Answers ARGV[1], and `old`: the server knows too few commands; or `missing`, and their names.
local function run()
  -- The latest of them to come, with 6.2.
  local known = redis.pcall('ZMSCORE', ARGV[2] .. ':beat', 'v')
  if known.err and known.err:find('Unknown .*command') then return ARGV[1] .. ' old' end
  local missing = ARGV[1] .. ' missing'
  if not redis.acl_check_cmd then return missing end -- before Redis 7
  local commands = {
    {'EXISTS'}, {'GET'}, {'SET', 'v'}, {'DEL'}, {'PTTL'}, {'PEXPIRE', '1'}, {'STRLEN'},
    {'GETRANGE', '0', '0'}, {'ZADD', '0', 'v'}, {'ZREM', 'v'}, {'ZCARD'}, {'ZMSCORE', 'v'},
    {'ZRANGE', '0', '0'},
  }
  for _, command in ipairs(commands) do
    local name = table.remove(command, 1)
    -- Some may use only locks, or only elections.
    if not redis.acl_check_cmd(name, ARGV[2], unpack(command))
      and not redis.acl_check_cmd(name, ARGV[3], unpack(command)) then
      missing = missing .. ' ' .. name
    end
  end
  if not redis.acl_check_cmd('TIME') then missing = missing .. ' TIME' end
  if not redis.acl_check_cmd('PUBLISH', ARGV[4], 'v') then missing = missing .. ' PUBLISH' end
  return missing
end
