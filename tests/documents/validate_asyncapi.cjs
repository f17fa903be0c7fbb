// What the AsyncAPI project's own parser says about a document, as a JSON list; nothing is said of what it has no fault with.
//
//   NODE_PATH=.../node_modules node validate_asyncapi.cjs asyncapi.json
const { readFileSync } = require("node:fs");
const { AvroSchemaParser } = require("@asyncapi/avro-schema-parser");
const { Parser } = require("@asyncapi/parser");

const avro = AvroSchemaParser();

// Of AsyncAPI 3 the parser converts Avro schemas, but does not validate them first.
async function parse(input) {
  const faults = await avro.validate(input);
  if (faults.length > 0) {
    throw new Error(`${input.path.join(".")}: ${faults.map((fault) => fault.message).join("; ")}`);
  }
  return avro.parse(input);
}

async function main(path) {
  const parser = new Parser({ schemaParsers: [{ ...avro, parse }] });
  const { document, diagnostics } = await parser.parse(readFileSync(path, "utf-8"), { source: path });
  const said = diagnostics.map(({ code, severity, message, path }) => ({ code, severity, message, path: path.join(".") }));
  if (document === undefined && said.length === 0) {
    throw new Error("the parser gave no document and no reason");
  }
  console.log(JSON.stringify(said));
}

main(process.argv[2]);
