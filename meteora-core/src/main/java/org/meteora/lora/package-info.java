/** PEFT adapters: their folders and settings, several stacked for one layer, merging. */
package org.meteora.lora;
