// A WebSocket client: streams one chat. `node examples/websocket.mjs [URL] [PROMPT]`
import { WebSocket } from 'ws'

const [url = 'ws://127.0.0.1:8080/v1/chat/ws', prompt = 'What is the capital of France?'] = process.argv.slice(2)
const socket = new WebSocket(url)
socket.on('open', () =>
  socket.send(
    JSON.stringify({
      type: 'chat',
      id: 'first',
      model: 'chat',
      messages: [{ role: 'user', content: prompt }],
      max_tokens: 32,
      temperature: 0,
    }),
  ),
)
socket.on('message', (data) => {
  const message = JSON.parse(data)
  if (message.type === 'delta') process.stdout.write(message.text)
  if (message.type === 'error') {
    console.error(message.error.message)
    process.exitCode = 1
  }
  if (message.type === 'usage' || message.type === 'error') {
    process.stdout.write('\n')
    socket.close()
  }
})
socket.on('error', (error) => {
  console.error(error.message)
  process.exitCode = 1
})
