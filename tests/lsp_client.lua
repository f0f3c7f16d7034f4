-- Drives a language server by Neovim's own client: $SERVER is its command as JSON, $OUT where the answers go.
local function ask(client, line, character)
  local params = {
    textDocument = vim.lsp.util.make_text_document_params(0),
    position = { line = line, character = character },
    context = { triggerKind = 1 },
  }
  local answer = client:request_sync("textDocument/inlineCompletion", params, 60000, 0)
  return answer and answer.result and answer.result.items and answer.result.items[1]
end

local said = { version = tostring(vim.version()) }
local ok, problem = pcall(function()
  local id = vim.lsp.start({ name = "codegen2", cmd = vim.json.decode(vim.env.SERVER), root_dir = vim.fn.getcwd() })
  local client = assert(vim.lsp.get_client_by_id(id))
  assert(vim.wait(30000, function() return client.initialized end))
  said.encoding = client.offset_encoding
  local item = ask(client, 2, 11)
  said.text = item and item.insertText
  said.range = item and item.range
  -- Incremental: a character of two UTF-16 units goes in before the cursor.
  vim.api.nvim_buf_set_text(0, 1, 0, 2, 11, { "def sub(a, b):  # \u{1F600}", "    return a -" })
  local second = ask(client, 2, 14)
  said.after_edit = second and second.insertText
end)
said.problem = not ok and tostring(problem) or nil
local file = assert(io.open(vim.env.OUT, "w"))
file:write(vim.json.encode(said))
file:close()
vim.cmd("qall!")
