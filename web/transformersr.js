// Show only the inputs that the chosen "size by" and model use, the size of the result, and what each model is for.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SIZED = ["TransformerSRUpscale", "TransformerSRUpscaleVideo"];
const NODES = [...SIZED, "TransformerSRModelLoader"];
const USED = { factor: ["factor"], "width and height": ["width", "height"], "longest side": ["longest_side"] };
const FILES = { LoadImage: "image", LoadImageOutput: "image", LoadVideo: "file" };

const models = { scales: {}, purposes: {}, crisp: [] }; // by label, from the server
const sizes = new Map(); // URL of a file to [width, height], or to null while it loads

const widget = (node, name) => node.widgets?.find((entry) => entry.name === name);
const input = (node, name) => node.inputs?.findIndex((entry) => entry.name === name) ?? -1;
const linked = (node, name) => node.inputs?.[input(node, name)]?.link != null;

function readModels(definition) {
  const options = definition?.input?.required?.model_name?.[1];
  if (options?.scales) Object.assign(models, { scales: options.scales, purposes: options.purposes, crisp: options.crisp });
}

// --- inputs that follow "size by" and the model -------------------------------------------------

function isUsed(node, name) {
  if (linked(node, name)) return true;
  const by = name === "crispness" ? "model_name" : "size_by";
  const chosen = linked(node, by) ? null : widget(node, by)?.value;
  if (chosen == null) return true;
  return name === "crispness" ? models.crisp.includes(chosen) : !!USED[chosen]?.includes(name);
}

function showUsed(node) {
  let changed = false;
  for (const name of [...Object.values(USED).flat(), "crispness"]) {
    const entry = widget(node, name);
    if (!entry) continue;
    const hidden = !isUsed(node, name);
    if (!!entry.hidden === hidden) continue;
    changed = true;
    hide(entry, hidden);
  }
  if (changed) fitHeight(node);
}

function hide(entry, hidden) {
  entry.hidden = hidden;
  if (hidden) entry.computeSize = () => [0, -4]; // front ends of 2025 leave a gap for a hidden widget
  else delete entry.computeSize;
}

function fitHeight(node) {
  const height = node.computeSize()[1];
  node.setSize?.([node.size[0], height]);
  node.setDirtyCanvas?.(true, true);
}

// --- the resulting size -------------------------------------------------------------------------

const half = (value) => {
  // round like Python: halves to the even neighbour
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
};

function sizeOf(url, video) {
  if (sizes.has(url)) return sizes.get(url);
  sizes.set(url, null);
  const element = video ? document.createElement("video") : new Image();
  const known = () => {
    sizes.set(url, [element.naturalWidth || element.videoWidth, element.naturalHeight || element.videoHeight]);
    refreshAll();
  };
  element.addEventListener(video ? "loadedmetadata" : "load", known, { once: true });
  if (video) element.preload = "metadata";
  element.src = url;
  return null;
}

/** Width and height of the input: those of the loaded file, otherwise those of the last run. */
function inputSize(node) {
  const source = node.graph && node.getInputNode(Math.max(input(node, "image"), input(node, "video")));
  const file = source && widget(source, FILES[source.type])?.value;
  if (typeof file !== "string" || !file) return source ? node.transformersr?.size : null;
  const [, path, folder = "input"] = file.match(/^(.*?)(?: \[(input|output|temp)\])?$/s);
  const query = new URLSearchParams({ filename: path.split("/").pop(), subfolder: path.split("/").slice(0, -1).join("/"), type: folder });
  return sizeOf(api.apiURL(`/view?${query}`), source.type === "LoadVideo");
}

function resultSize(node, [width, height]) {
  const value = (name) => widget(node, name)?.value;
  const names = ["model_name", "size_by", ...(USED[value("size_by")] ?? [])];
  if (names.some((name) => linked(node, name))) return null;
  let [toWidth, toHeight] = [0, 0];
  if (value("size_by") === "factor") {
    const times = (side) => Math.max(1, half(side * value("factor")));
    [toWidth, toHeight] = [times(width), times(height)];
  } else if (value("size_by") === "width and height") {
    [toWidth, toHeight] = [value("width"), value("height")];
    if (!toWidth && !toHeight) return null;
  } else if (value("size_by") === "longest side") {
    [toWidth, toHeight] = height > width ? [0, value("longest_side")] : [value("longest_side"), 0];
  } else {
    const scale = models.scales[value("model_name")] ?? node.transformersr?.scales?.[value("model_name")];
    if (!scale) return null;
    [toWidth, toHeight] = [width * scale, height * scale];
  }
  toWidth ||= Math.max(1, half((width * toHeight) / height));
  toHeight ||= Math.max(1, half((height * toWidth) / width));
  const even = node.comfyClass === "TransformerSRUpscaleVideo" ? 2 : 1; // H.264 requires even numbers
  return [toWidth, toHeight].map((side) => Math.ceil(side / even) * even);
}

function showSize(node) {
  const line = widget(node, "result");
  if (!line) return;
  const from = inputSize(node);
  const to = from && resultSize(node, from);
  const empty = widget(node, "size_by")?.value === "width and height" && !widget(node, "width")?.value && !widget(node, "height")?.value;
  const text = to ? to.join(" × ") : empty ? "set width or height" : "";
  if (line.value === text && !!line.hidden === !text) return;
  line.value = text;
  const moved = !!line.hidden !== !text;
  hide(line, !text);
  if (moved) fitHeight(node);
  node.setDirtyCanvas?.(true, true);
}

function refresh(node) {
  showUsed(node);
  showSize(node);
}

function refreshAll() {
  for (const graph of new Set([app.graph, app.canvas?.graph])) {
    for (const node of graph?.nodes ?? []) if (NODES.includes(node.comfyClass)) refresh(node);
  }
}

// --- templates ----------------------------------------------------------------------------------

/** Our templates end in core's Compare Images. Where that is missing or shows nothing (classic canvas), preview its second image instead. */
function replaceMissing(graph) {
  const { registered_node_types: types, vueNodesMode } = window.LiteGraph;
  if (types.ImageCompare && vueNodesMode) return;
  for (const node of graph?.nodes ?? []) {
    if (node.type !== "ImageCompare" || node.properties?.fallback !== "PreviewImage") continue;
    const [before, after] = ["image_a", "image_b"].map((name) => node.inputs.find((entry) => entry.name === name).link);
    node.type = "PreviewImage";
    node.properties = { "Node name for S&R": "PreviewImage" };
    node.title = "After";
    node.inputs = [{ name: "images", type: "IMAGE", link: after }];
    graph.links = graph.links.filter(([id]) => id !== before).map((link) => (link[0] === after ? link.with(4, 0) : link));
    for (const other of graph.nodes) for (const output of other.outputs ?? []) output.links = output.links?.filter((id) => id !== before);
  }
}

// --- the extension ------------------------------------------------------------------------------

app.registerExtension({
  name: "TransformerSR",

  setup() {
    api.addEventListener("graphChanged", refreshAll);
  },

  beforeRegisterNodeDef(type, definition) {
    if (NODES.includes(definition.name)) readModels(definition);
  },

  beforeConfigureGraph: replaceMissing,

  refreshComboInNodes(definitions) {
    readModels(definitions[NODES[0]]);
    refreshAll();
  },

  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const model = widget(node, "model_name");
    if (model?.options) {
      model.options.getOptionLabel = (label) => (models.purposes[label] ? `${label} (${models.purposes[label]})` : String(label ?? ""));
    }
    const crispness = widget(node, "crispness"); // a hidden crispness counts as 0 and returns with a model that supports it
    if (crispness) crispness.serializeValue = () => (isUsed(node, "crispness") ? crispness.value : 0);
    if (SIZED.includes(node.comfyClass)) {
      const line = node.addWidget("text", "result", "", () => {}, { serialize: false, read_only: true });
      Object.assign(line, { serialize: false, onClick() {} }); // otherwise the classic canvas opens a text prompt
      hide(line, true);
    }
    for (const entry of node.widgets) {
      const before = entry.callback;
      entry.callback = function (...values) {
        const result = before?.apply(this, values);
        refresh(node);
        return result;
      };
    }
    for (const name of ["onConfigure", "onConnectionsChange"]) {
      const before = node[name];
      node[name] = function (...values) {
        const result = before?.apply(this, values);
        if (name === "onConnectionsChange") delete this.transformersr;
        queueMicrotask(() => refresh(this));
        return result;
      };
    }
    const before = node.onExecuted;
    node.onExecuted = function (output, ...others) {
      before?.call(this, output, ...others);
      const [run] = output?.transformersr ?? [];
      if (!run) return;
      const scales = { ...this.transformersr?.scales, [widget(this, "model_name")?.value]: run.scale };
      this.transformersr = { size: [run.width, run.height], scales };
      refresh(this);
    };
    refresh(node);
  },
});
