-- Sees a language server's answers as Neovim 0.12 shows them: an outer Neovim types into an inner one, whose ghost text
-- it reads. $NVIM_PROGRAM is the inner one, $RECIPE the configuration of docs/editors.md, $OUT where what was seen goes.
local inner = vim.fn.jobstart({ vim.env.NVIM_PROGRAM, "--embed", "--headless", "--clean", "a.py" }, { rpc = true })

local function lua(code, ...) return vim.rpcrequest(inner, "nvim_exec_lua", code, { ... }) end
local function type_in(keys) vim.rpcrequest(inner, "nvim_input", keys) end

local function ghost()
  return lua([[
    local space = vim.api.nvim_get_namespaces()["nvim.lsp.inline_completion"]
    local marks = space and vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true }) or {}
    local mark = marks[1]
    if not mark then return vim.NIL end
    local function text(chunks) return vim.iter(chunks):map(function(chunk) return chunk[1] end):join("") end
    return {
      row = mark[2], column = mark[3], text = text(mark[4].virt_text),
      lines = vim.iter(mark[4].virt_lines or {}):map(text):totable(),
    }
  ]])
end

local function seen(typed)
  local found
  local there = vim.wait(30000, function()
    found = ghost()
    return found ~= vim.NIL and #(found.text .. table.concat(found.lines)) > 0
  end, 20)
  assert(there, "no ghost text after " .. typed)
  found.buffer = vim.rpcrequest(inner, "nvim_buf_get_lines", 0, 0, -1, false)
  found.cursor = vim.rpcrequest(inner, "nvim_win_get_cursor", 0)
  return found
end

local said = {}
local ok, problem = pcall(function()
  said.version = lua("return tostring(vim.version())")
  lua(vim.env.RECIPE)
  lua("vim.api.nvim_exec_autocmds('FileType', { pattern = vim.bo.filetype })")
  assert(vim.wait(30000, function()
    return lua("local c = vim.lsp.get_clients({ bufnr = 0 })[1]; return c ~= nil and c.initialized")
  end, 20), "no client")
  type_in("3GAa +")
  said.typed = seen("a key")
  type_in("<Tab>")
  vim.wait(300)
  said.accepted = vim.rpcrequest(inner, "nvim_buf_get_lines", 0, 0, -1, false)
  said.after_tab = vim.rpcrequest(inner, "nvim_win_get_cursor", 0)
  type_in("<Esc>Go<CR><CR>def average(values):<CR>")
  said.block = seen("a block's head")
  type_in("<Esc>")
  assert(vim.wait(5000, function() return ghost() == vim.NIL end, 20), "ghost text after Escape")
  said.left = true
  lua("for _, client in ipairs(vim.lsp.get_clients()) do client:stop() end")
  assert(vim.wait(10000, function() return lua("return #vim.lsp.get_clients()") == 0 end, 20), "it does not end")
end)
said.problem = not ok and tostring(problem) or nil
local file = assert(io.open(vim.env.OUT, "w"))
file:write(vim.json.encode(said))
file:close()
vim.fn.jobstop(inner)
vim.cmd("qall!")
