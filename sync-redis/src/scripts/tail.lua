local ok, reply = pcall(run)
if ok then return reply end
local text = type(reply) == 'table' and reply.err or tostring(reply)
if dirty then return redis.error_reply('HALFDONE ' .. text) end
return ARGV[1] .. ' refused ' .. text
